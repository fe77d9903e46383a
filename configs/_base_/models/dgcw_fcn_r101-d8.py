_base_ = './fcn_r50-d8.py'
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    pretrained='open-mmlab://resnet101_v1c',
    backbone=dict(depth=101),
    decode_head=dict(
        _delete_=True,
        type='DGCWHead',
        in_channels=2048,
        in_index=3,
        channels=128,
        layer=dict(type='ChannelWeighting'),
        downsample=4,
        # as in the paper: what is classified is a quarter of the feature size
        concat_features=False,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)))
