_base_ = ['./fcn_r50-d8.py', './hrnetv2_w48.py']
# As released: 720 channels throughout, no auxiliary head.
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    pretrained='open-mmlab://msra/hrnetv2_w48',
    backbone=dict(_delete_=True, **_base_.hrnetv2_w48),
    decode_head=dict(
        _delete_=True,
        type='ProtoSegHead',
        in_channels=[48, 96, 192, 384],
        in_index=(0, 1, 2, 3),
        input_transform='resize_concat',
        channels=720,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=True,
        bank=dict(type='DistributionBank', num_distributions=10, momentum=0.999, assignment='gumbel'),
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        loss_prototype=[
            dict(type='PixelPrototypeContrastLoss', loss_weight=0.01),
            dict(type='PixelPrototypeDistanceLoss', loss_weight=0.001),
        ]),
    auxiliary_head=None)
