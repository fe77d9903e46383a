_base_ = './schedule_80k.py'
# MMSegmentation's settings for STDC
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, begin=0, end=1000, by_epoch=False),
    dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=1000, end=80000, by_epoch=False),
]
