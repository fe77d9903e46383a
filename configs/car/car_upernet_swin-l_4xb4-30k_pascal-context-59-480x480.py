_base_ = '../baselines/upernet_swin-l_4xb4-30k_pascal-context-59-480x480.py'
model = dict(type='CAREncoderDecoder', pointwise=['fpn_bottleneck'])
