_base_ = [
    '../_base_/models/mcibi_fcn_efficientnet-lite0-d8.py',
    '../_base_/datasets/camvid_240x320.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_4k.py',
]
crop_size = (240, 320)
data_preprocessor = dict(size=crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(num_classes=11),
    auxiliary_head=dict(num_classes=11))
