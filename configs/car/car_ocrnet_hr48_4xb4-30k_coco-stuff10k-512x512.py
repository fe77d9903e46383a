_base_ = '../baselines/ocrnet_hr48_4xb4-30k_coco-stuff10k-512x512.py'
model = dict(type='CARCascadeEncoderDecoder')
