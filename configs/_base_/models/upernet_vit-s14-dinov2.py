_base_ = './upernet_swin-t_aux.py'
# As MMSegmentation puts UPerNet on a plain ViT: the maps after four layers, brought to four sizes.
# `pretrained=True` lets timm fetch the DINOv2 weights. Images are padded to whole patches of 14.
model = dict(
    backbone=dict(
        _delete_=True,
        type='TIMMBackbone',
        model_name='vit_small_patch14_dinov2.lvd142m',
        features_only=True,
        pretrained=True,
        out_indices=(2, 5, 8, 11),
        dynamic_img_size=True,
        dynamic_img_pad=True),
    neck=dict(
        type='MultiLevelNeck',
        in_channels=[384, 384, 384, 384],
        out_channels=384,
        scales=[4, 2, 1, 0.5]),
    decode_head=dict(in_channels=[384, 384, 384, 384]),
    auxiliary_head=dict(in_channels=384, in_index=3))
