_base_ = './mcibi_deeplabv3_r50-d8_4xb4-96k_cityscapes-trainval-512x1024.py'
model = dict(pretrained='open-mmlab://resnet101_v1c', backbone=dict(depth=101))
