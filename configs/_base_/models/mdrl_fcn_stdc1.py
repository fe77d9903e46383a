_base_ = ['./fcn_stdc1.py', './mdrl_consistency.py']
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    decode_head=dict(
        _delete_=True,
        type='MDRLHead',
        in_channels=256,
        in_index=3,
        channels=256,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=True,
        sampler=dict(type='OHEMPixelSampler', thresh=0.7, min_kept=10000),
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        bank=dict(type='DistributionBank', num_distributions=9, momentum=0.999),
        loss_coarse=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
        loss_consistency=_base_.loss_consistency))
