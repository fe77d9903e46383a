_base_ = [
    '../_base_/models/mcibi_deeplabv3_r50-d8.py',
    '../_base_/datasets/cityscapes-trainval.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_96k.py',
]
crop_size = (512, 1024)
data_preprocessor = dict(size=crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(num_classes=19),
    auxiliary_head=dict(num_classes=19),
    # as released: windows of 1024 rows and 512 columns
    test_cfg=dict(mode='slide', crop_size=(1024, 512), stride=(341, 341)))
train_dataloader = dict(batch_size=4)
