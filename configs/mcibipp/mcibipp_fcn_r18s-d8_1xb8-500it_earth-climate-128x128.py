_base_ = [
    '../_base_/models/mcibipp_fcn_r18s-d8.py',
    '../_base_/datasets/earth_climate_128x128.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_500it.py',
]
crop_size = (128, 128)
data_preprocessor = dict(size=crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(num_classes=6),
    auxiliary_head=dict(num_classes=6))
