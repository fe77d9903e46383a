_base_ = [
    '../_base_/models/mcibipp_deeplabv3_r50-d8.py',
    '../_base_/datasets/cityscapes-trainval.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_96k.py',
]
crop_size = (512, 1024)
data_preprocessor = dict(size=crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    pretrained='open-mmlab://resnet101_v1c',
    backbone=dict(depth=101),
    decode_head=dict(final_kernel_size=3),
    # as released: windows of 1024 rows and 512 columns
    test_cfg=dict(mode='slide', crop_size=(1024, 512), stride=(341, 341)))
train_dataloader = dict(batch_size=4)
