_base_ = '../baselines/deeplabv3_r101-d8_4xb4-30k_pascal-context-59-480x480.py'
model = dict(type='CAREncoderDecoder', pointwise=['bottleneck'])
