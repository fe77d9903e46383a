# model settings
norm_cfg = dict(type='SyncBN', requires_grad=True)
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=data_preprocessor,
    # One map at stride 8, after the network's last conv to 2048 channels, norm and swish.
    # `pretrained=True` lets timm fetch its ImageNet weights, of that conv too.
    backbone=dict(
        type='TIMMLastMap',
        model_name='tf_efficientnet_b5',
        pretrained=True,
        output_stride=8,
        drop_path_rate=0.4),
    decode_head=dict(
        type='CAAHead',
        in_channels=2048,
        in_index=0,
        channels=256,
        attention_channels=512,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    # model training and testing settings
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
