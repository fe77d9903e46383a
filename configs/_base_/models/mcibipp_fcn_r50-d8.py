_base_ = './fcn_r50-d8.py'
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    decode_head=dict(
        _delete_=True,
        type='MCIBIPlusPlusHead',
        in_channels=2048,
        in_index=3,
        channels=512,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=False,
        bank=dict(type='GaussianBank', momentum=0.1),
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        loss_coarse=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
        loss_context=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    # as released; MMSegmentation's own is half as wide
    auxiliary_head=dict(channels=512))
