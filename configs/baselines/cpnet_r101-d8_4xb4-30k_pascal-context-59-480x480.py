_base_ = [
    '../_base_/models/cpnet_r50-d8.py',
    '../_base_/datasets/pascal_context_59.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_30k.py',
]
crop_size = (480, 480)
data_preprocessor = dict(size=crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    pretrained='open-mmlab://resnet101_v1c',
    backbone=dict(depth=101),
    decode_head=dict(num_classes=59, prior_size=60),
    # the paper has auxiliary losses for OCR only
    auxiliary_head=None,
    test_cfg=dict(mode='slide', crop_size=crop_size, stride=(320, 320)))
