_base_ = [
    '../_base_/models/mcibipp_fcn_r18s-d8.py',
    '../_base_/datasets/camvid_180x240.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_200it.py',
]
crop_size = (180, 240)
data_preprocessor = dict(size=crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(num_classes=11),
    auxiliary_head=dict(num_classes=11))
