_base_ = '../baselines/nonlocal_r50-d8_4xb4-30k_coco-stuff10k-512x512.py'
model = dict(
    type='CAREncoderDecoder',
    pointwise=['convs.1', 'conv_cat'],
    losses=[
        dict(type='IntraClassCenterToPixelLoss'),
        dict(type='InterClassCenterToCenterLoss', threshold=0.25),
        dict(type='InterClassCenterToPixelLoss'),
    ])
