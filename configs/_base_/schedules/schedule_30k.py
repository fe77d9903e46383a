_base_ = './schedule_20k.py'
# CAR, section 4.1
optim_wrapper = dict(optimizer=dict(weight_decay=0.001))
param_scheduler = [
    dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=30000, by_epoch=False)
]
train_cfg = dict(max_iters=30000, val_interval=3000)
default_hooks = dict(checkpoint=dict(interval=3000))
