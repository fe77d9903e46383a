_base_ = [
    '../_base_/models/mcibipp_upernet_s101-d8.py',
    '../_base_/datasets/pascal_context_59.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_80k.py',
]
crop_size = (480, 480)
data_preprocessor = dict(size=crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(
        num_classes=59,
        context=dict(_delete_=True, type='ASPPHead', dilations=(1, 12, 24, 36))),
    auxiliary_head=dict(num_classes=59),
    test_cfg=dict(mode='slide', crop_size=crop_size, stride=(320, 320)))
optim_wrapper = dict(optimizer=dict(lr=0.004))
