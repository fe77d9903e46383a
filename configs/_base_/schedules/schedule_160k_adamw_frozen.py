_base_ = './schedule_160k_adamw.py'
# a backbone that stays as it is
optim_wrapper = dict(
    paramwise_cfg=dict(
        _delete_=True,
        norm_decay_mult=0.,
        custom_keys={
            'backbone': dict(lr_mult=0., decay_mult=0.),
            'norm': dict(decay_mult=0.),
        }))
