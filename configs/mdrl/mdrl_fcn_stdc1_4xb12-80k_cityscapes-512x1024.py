_base_ = [
    '../_base_/models/mdrl_fcn_stdc1.py',
    '../_base_/datasets/cityscapes.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_80k_stdc.py',
]
crop_size = (512, 1024)
data_preprocessor = dict(size=crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
)
train_dataloader = dict(batch_size=12, num_workers=4)
