_base_ = '../baselines/upernet_swin-l_4xb4-30k_coco-stuff10k-512x512.py'
model = dict(type='CAREncoderDecoder', pointwise=['fpn_bottleneck'])
