_base_ = [
    '../_base_/models/mcibipp_deeplabv3_hr48.py',
    '../_base_/datasets/cityscapes-trainval.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_96k.py',
]
crop_size = (512, 1024)
data_preprocessor = dict(size=crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    # the released model has no activation between the two convs of its stem
    backbone=dict(type='LinearStemHRNet'),
    decode_head=dict(context_kernel_size=3),
    # as released: windows of 1024 rows and 512 columns
    test_cfg=dict(mode='slide', crop_size=(1024, 512), stride=(341, 341)))
train_dataloader = dict(batch_size=4)
