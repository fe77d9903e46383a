_base_ = [
    '../_base_/models/mdrl_segformer_mit-b0.py',
    '../_base_/datasets/cityscapes_1024x1024.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_160k_adamw_segformer.py',
]
crop_size = (1024, 1024)
data_preprocessor = dict(size=crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    test_cfg=dict(mode='slide', crop_size=(1024, 1024), stride=(768, 768)),
    decode_head=dict(num_classes=19))
train_dataloader = dict(batch_size=1, num_workers=4)
