_base_ = [
    '../_base_/models/dgcw_fcn_efficientnet-lite0-d8.py',
    '../_base_/datasets/camvid_240x320.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_4k.py',
]
crop_size = (240, 320)
data_preprocessor = dict(size=crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(num_classes=11),
    auxiliary_head=dict(num_classes=11),
    # the sum over pixels is that of the training crops
    test_cfg=dict(mode='slide', crop_size=crop_size, stride=(160, 213)))
