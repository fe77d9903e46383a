_base_ = '../baselines/deeplabv3_r50-d8_4xb4-30k_coco-stuff10k-512x512.py'
model = dict(type='CAREncoderDecoder', pointwise=['bottleneck'])
