_base_ = ['./mcibipp_deeplabv3_r50-d8.py', './hrnetv2_w48.py']
norm_cfg = dict(type='SyncBN', requires_grad=True)
# As released: all maps joined at stride 4, related at half that size, and no auxiliary head.
model = dict(
    pretrained='open-mmlab://msra/hrnetv2_w48',
    backbone=dict(_delete_=True, **_base_.hrnetv2_w48),
    neck=dict(type='ResizeConcatNeck', in_channels=[48, 96, 192, 384], norm_cfg=norm_cfg),
    decode_head=dict(
        in_channels=720,
        in_index=0,
        downsample_before_sa=True,
        relate_context=False,
        final_kernel_size=3),
    auxiliary_head=None)
