_base_ = './fcn_r18s-d8.py'
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    decode_head=dict(
        _delete_=True,
        type='DGCWHead',
        in_channels=128,
        in_index=3,
        channels=64,
        layer=dict(type='ChannelWeighting'),
        downsample=4,
        # small crops leave a few pixels at a quarter of the size: too few to classify alone
        concat_features=True,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)))
