_base_ = [
    '../_base_/models/nonlocal_r18s-d8.py',
    '../_base_/datasets/earth_climate_128x128.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_500it.py',
]
crop_size = (128, 128)
# tiles that a feature map at stride 8 covers exactly, as it does a crop of training
data_preprocessor = dict(size=crop_size, test_cfg=dict(size_divisor=8))
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(num_classes=6),
    auxiliary_head=dict(num_classes=6))
