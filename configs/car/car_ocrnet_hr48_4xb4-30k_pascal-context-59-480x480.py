_base_ = '../baselines/ocrnet_hr48_4xb4-30k_pascal-context-59-480x480.py'
model = dict(type='CARCascadeEncoderDecoder')
