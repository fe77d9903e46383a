_base_ = './mcibi_deeplabv3_r50-d8.py'
norm_cfg = dict(type='SyncBN', requires_grad=True)
# As released: ViT-Large with patches of 16, the maps after layers 9, 14, 19 and 23 (from 0) at
# stride 16, each with a layer norm of its own: the last one's is `final_norm`, the others' are in the
# auxiliary heads.
model = dict(
    pretrained='pretrain/vit_large_p16.pth',
    backbone=dict(
        _delete_=True,
        type='VisionTransformer',
        img_size=(512, 512),
        patch_size=16,
        in_channels=3,
        embed_dims=1024,
        num_layers=24,
        num_heads=16,
        out_indices=(9, 14, 19, 23),
        drop_rate=0.,
        norm_cfg=dict(type='LN', eps=1e-6, requires_grad=True),
        patch_bias=True,
        final_norm=True,
        interpolate_mode='bilinear'),
    decode_head=dict(in_channels=1024, context=dict(dilations=(1, 6, 12, 18))),
    auxiliary_head=[
        dict(
            type='SETRUPHead',
            in_channels=1024,
            in_index=index,
            channels=512,
            num_convs=2,
            up_scale=4,
            kernel_size=3,
            dropout_ratio=0.1,
            num_classes=19,
            norm_cfg=norm_cfg,
            align_corners=False,
            loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4))
        for index in range(3)
    ])
