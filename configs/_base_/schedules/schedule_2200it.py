_base_ = './schedule_20k.py'
# CMDL's settings for CamVid: 100 epochs of its 367 images at batch 16, the last short batch dropped
optimizer = dict(lr=0.02, weight_decay=0.0001)
optim_wrapper = dict(optimizer=optimizer)
param_scheduler = [
    dict(type='PolyLR', eta_min=2e-4, power=0.9, begin=0, end=2200, by_epoch=False)
]
train_cfg = dict(max_iters=2200, val_interval=220)
default_hooks = dict(checkpoint=dict(interval=220))
