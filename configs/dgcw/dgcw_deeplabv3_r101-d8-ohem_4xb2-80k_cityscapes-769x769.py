_base_ = './dgcw_deeplabv3_r101-d8_4xb2-80k_cityscapes-769x769.py'
# The paper keeps at least 100000 pixels of a batch, as OCNet, which counts them on each GPU;
# `min_kept` is of each image.
model = dict(
    decode_head=dict(sampler=dict(type='OHEMPixelSampler', thresh=0.7, min_kept=100000 // 2)))
