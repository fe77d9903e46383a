_base_ = './fcn_efficientnet-lite0-d8.py'
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    decode_head=dict(
        _delete_=True,
        type='MCIBIHead',
        in_channels=320,
        in_index=4,
        channels=256,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=False,
        bank=dict(type='FeatureBank', strategy='cosine', init='first_seen'),
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        loss_coarse=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
        loss_memory=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)))
