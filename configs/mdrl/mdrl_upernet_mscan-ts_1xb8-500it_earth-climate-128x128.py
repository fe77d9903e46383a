_base_ = [
    '../_base_/models/mdrl_upernet_mscan-ts.py',
    '../_base_/datasets/earth_climate_128x128.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_500it_adamw.py',
]
crop_size = (128, 128)
# tiles that every map of the backbone covers exactly, as it does a crop of training
data_preprocessor = dict(size=crop_size, test_cfg=dict(size_divisor=32))
model = dict(data_preprocessor=data_preprocessor, decode_head=dict(num_classes=6))
