_base_ = '../baselines/danet_r101-d8_4xb4-30k_pascal-context-59-480x480.py'
model = dict(type='CAREncoderDecoder', pointwise=['pam_out_conv', 'cam_out_conv'])
