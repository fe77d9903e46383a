_base_ = [
    '../_base_/models/mdrl_fcn_r50-d8.py',
    '../_base_/datasets/camvid_360x360.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_2200it.py',
]
crop_size = (360, 360)
data_preprocessor = dict(size=crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(num_classes=11),
    auxiliary_head=dict(num_classes=11))
