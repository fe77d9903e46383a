_base_ = './mcibi_deeplabv3_r50-d8.py'
# ViT-Large with patches of 16 as MMSegmentation's SETR has it, its maps at stride 16
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
        out_indices=(5, 11, 17, 23),
        drop_rate=0.,
        norm_cfg=dict(type='LN', eps=1e-6, requires_grad=True),
        with_cls_token=False,
        interpolate_mode='bilinear'),
    decode_head=dict(in_channels=1024, context=dict(dilations=(1, 6, 12, 18))),
    auxiliary_head=dict(in_channels=1024))
