_base_ = '../baselines/nonlocal_r50-d8_4xb4-30k_pascal-context-59-480x480.py'
model = dict(type='CAREncoderDecoder', pointwise=['convs.1', 'conv_cat'])
