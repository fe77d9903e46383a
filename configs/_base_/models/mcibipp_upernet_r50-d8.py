_base_ = './mcibipp_fcn_r50-d8.py'
# As released on UPerNet: a feature pyramid behind the memory, instead of UPerHead's own before it.
model = dict(
    decode_head=dict(
        context=dict(type='PSPHead', pool_scales=(1, 2, 3, 6)),
        relate_context=False,
        final_kernel_size=3,
        pyramid=dict(in_channels=[256, 512, 1024], in_index=[0, 1, 2], out_channels=512)))
