_base_ = '../baselines/danet_r101-d8_4xb4-30k_coco-stuff10k-512x512.py'
model = dict(type='CAREncoderDecoder', pointwise=['pam_out_conv', 'cam_out_conv'])
