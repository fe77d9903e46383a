_base_ = ['./fcn_r50-d8.py', './mdrl_consistency.py']
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    decode_head=dict(
        _delete_=True,
        type='MDRLHead',
        in_channels=2048,
        in_index=3,
        channels=512,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=False,
        bank=dict(type='DistributionBank', num_distributions=9, momentum=0.999),
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        loss_coarse=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
        loss_consistency=_base_.loss_consistency),
    # as released; MMSegmentation's own is half as wide
    auxiliary_head=dict(channels=512))
