_base_ = './mcibipp_upernet_r50-d8_4xb4-62k_coco-stuff10k-182-512x512.py'
model = dict(
    pretrained='open-mmlab://resnet101_v1c',
    backbone=dict(depth=101),
    decode_head=dict(context=dict(_delete_=True, type='ASPPHead', dilations=(1, 12, 24, 36))))
