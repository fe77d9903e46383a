_base_ = [
    '../_base_/models/dgcw_deeplabv3_r101-d8.py',
    '../_base_/datasets/ade20k_513x513.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_160k.py',
]
crop_size = (513, 513)
data_preprocessor = dict(size=crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(
        num_classes=150,
        align_corners=True,
        # as on Cityscapes (section 4.5); see the config of that data set
        sampler=dict(type='OHEMPixelSampler', thresh=0.7, min_kept=100000 // 4)),
    auxiliary_head=dict(num_classes=150, align_corners=True),
    # the sum over pixels is that of the training crops
    test_cfg=dict(mode='slide', crop_size=crop_size, stride=(342, 342)))
optimizer = dict(lr=0.02)
optim_wrapper = dict(optimizer=optimizer)
