# model settings
# Plain BN: for one GPU, or a CPU. On several GPUs add `sync_bn='torch'`.
norm_cfg = dict(type='BN', requires_grad=True)
# mean and std of the ImageNet weights of tf_efficientnet_lite0
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[127.5, 127.5, 127.5],
    std=[127.5, 127.5, 127.5],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=data_preprocessor,
    # Five maps: 16, 24, 40, 112, 320 channels at stride 2, 4, 8, 8, 8. `pretrained=True` lets timm
    # fetch the ImageNet weights; configs/mdrl/README.md says how to use a file instead.
    backbone=dict(
        type='TIMMBackbone',
        model_name='tf_efficientnet_lite0',
        features_only=True,
        pretrained=True,
        output_stride=8),
    decode_head=dict(
        type='FCNHead',
        in_channels=320,
        in_index=4,
        channels=256,
        num_convs=2,
        concat_input=True,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    auxiliary_head=dict(
        type='FCNHead',
        in_channels=112,
        in_index=3,
        channels=128,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4)),
    # model training and testing settings
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
