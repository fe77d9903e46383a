_base_ = './mcibi_deeplabv3_r50-d8_4xb4-62k_coco-stuff10k-182-512x512.py'
model = dict(pretrained='open-mmlab://resnet101_v1c', backbone=dict(depth=101))
