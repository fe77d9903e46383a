_base_ = '../baselines/upernet_swin-t_4xb4-30k_coco-stuff10k-512x512.py'
model = dict(
    type='CAREncoderDecoder',
    pointwise=['fpn_bottleneck'],
    losses=[
        dict(type='IntraClassCenterToPixelLoss'),
        dict(type='InterClassCenterToCenterLoss', threshold=0.25),
        dict(type='InterClassCenterToPixelLoss'),
    ])
