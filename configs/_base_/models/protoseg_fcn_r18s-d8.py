_base_ = './fcn_r18s-d8.py'
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    decode_head=dict(
        _delete_=True,
        type='ProtoSegHead',
        in_channels=128,
        in_index=3,
        channels=64,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=True,
        bank=dict(type='DistributionBank', num_distributions=10, momentum=0.999, assignment='gumbel'),
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        loss_prototype=[
            dict(type='PixelPrototypeContrastLoss', loss_weight=0.01),
            dict(type='PixelPrototypeDistanceLoss', loss_weight=0.001),
        ]))
