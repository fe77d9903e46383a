_base_ = [
    '../_base_/models/mcibi_deeplabv3_hr48.py',
    '../_base_/datasets/coco-stuff10k-182.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_62k.py',
]
crop_size = (512, 512)
data_preprocessor = dict(size=crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(num_classes=182),
    test_cfg=dict(mode='slide', crop_size=crop_size, stride=(341, 341)))
