_base_ = './schedule_20k.py'
# 110 epochs of COCO-Stuff 10k at batch 16, with MCIBI's released settings for it
optimizer = dict(lr=0.001, weight_decay=0.0001)
optim_wrapper = dict(optimizer=optimizer)
param_scheduler = [
    dict(type='PolyLR', eta_min=1e-5, power=0.9, begin=0, end=62000, by_epoch=False)
]
train_cfg = dict(max_iters=62000, val_interval=6200)
default_hooks = dict(checkpoint=dict(interval=6200))
