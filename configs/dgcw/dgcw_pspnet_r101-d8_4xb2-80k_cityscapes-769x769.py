_base_ = [
    '../_base_/models/dgcw_pspnet_r101-d8.py',
    '../_base_/datasets/cityscapes_769x769.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_80k.py',
]
crop_size = (769, 769)
data_preprocessor = dict(size=crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(align_corners=True),
    auxiliary_head=dict(align_corners=True),
    # the sum over pixels is that of the training crops
    test_cfg=dict(mode='slide', crop_size=crop_size, stride=(513, 513)))
