_base_ = './mcibipp_upernet_r50-d8_8xb4-140k_lip-473x473.py'
model = dict(pretrained='open-mmlab://resnet101_v1c', backbone=dict(depth=101))
