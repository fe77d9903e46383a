_base_ = './upernet_swin-t.py'
checkpoint_file = 'https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/swin/swin_large_patch4_window7_224_22k_20220412-aeecf2aa.pth'
model = dict(
    backbone=dict(
        init_cfg=dict(checkpoint=checkpoint_file),
        embed_dims=192,
        depths=[2, 2, 18, 2],
        num_heads=[6, 12, 24, 48]),
    decode_head=dict(in_channels=[192, 384, 768, 1536]))
