_base_ = [
    '../_base_/models/mcibipp_upernet_r50-d8.py',
    '../_base_/datasets/lip.py',
    '../_base_/left_right_runtime.py',
    '../_base_/schedules/schedule_140k.py',
]
crop_size = (473, 473)
data_preprocessor = dict(size=crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(num_classes=20),
    auxiliary_head=dict(num_classes=20))
