# optimizer
optimizer = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0005)
optim_wrapper = dict(type='OptimWrapper', optimizer=optimizer, clip_grad=None)
# learning policy; MMSegmentation's floor of 1e-4, so that its baselines compare
param_scheduler = [
    dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=20000, by_epoch=False)
]
# training schedule for 20k
train_cfg = dict(type='IterBasedTrainLoop', max_iters=20000, val_interval=2000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # the last two checkpoints to resume from, and the best one on val
    checkpoint=dict(
        type='CheckpointHook', by_epoch=False, interval=2000, max_keep_ckpts=2, save_best='mIoU'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    # labels and classes; see docs/guarantees.md
    data_guard=dict(type='DataGuardHook'),
    # a resumed job draws the dropout of one that was never stopped; these two here and not
    # in custom_hooks, which a config of one's own replaces
    iteration_seed=dict(type='SeedPerIterationHook'),
    visualization=dict(type='SegVisualizationHook'))
