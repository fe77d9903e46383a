_base_ = './mcibipp_upernet_r50-d8_4xb4-40k_voc12aug-512x512.py'
model = dict(
    pretrained='open-mmlab://resnet101_v1c',
    backbone=dict(depth=101),
    decode_head=dict(context=dict(_delete_=True, type='PSPHead', pool_scales=(1, 2, 3, 6))))
