_base_ = './segformer_mit-b0.py'
# A MiT-B0 of half the width, trained from scratch: small enough for a CPU.
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    backbone=dict(init_cfg=None, embed_dims=16, num_heads=[1, 2, 5, 8]),
    decode_head=dict(in_channels=[16, 32, 80, 128], channels=64, norm_cfg=norm_cfg))
