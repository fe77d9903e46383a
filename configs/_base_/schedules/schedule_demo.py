_base_ = './schedule_20k.py'
# From scratch in 400 iterations plain FCN learns most at 0.2 (of SGD at 0.01, 0.05, 0.2 and AdamW
# at 0.001, 0.003), so both models train at that.
optim_wrapper = dict(optimizer=dict(lr=0.2))
param_scheduler = [
    dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=400, by_epoch=False)
]
train_cfg = dict(max_iters=400, val_interval=200)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=200))
