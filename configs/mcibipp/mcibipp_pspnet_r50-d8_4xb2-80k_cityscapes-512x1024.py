_base_ = [
    '../_base_/models/mcibipp_pspnet_r50-d8.py',
    '../_base_/datasets/cityscapes.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_80k.py',
]
crop_size = (512, 1024)
data_preprocessor = dict(size=crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(
        relate_context=False,
        coarse_kernel_size=3,
        context_kernel_size=3,
        final_kernel_size=3))
