_base_ = './schedule_160k_adamw.py'
# MMSegmentation's settings for SegFormer. The longest name that matches decides, so norms of the head
# would have weight decay without the last three.
optim_wrapper = dict(
    paramwise_cfg=dict(
        _delete_=True,
        custom_keys={
            'pos_block': dict(decay_mult=0.),
            'norm': dict(decay_mult=0.),
            'head': dict(lr_mult=10.),
            '.bn.': dict(lr_mult=10., decay_mult=0.),
            'head.projection.norm': dict(lr_mult=10., decay_mult=0.),
            'head.consistency.losses.0.norm': dict(lr_mult=10., decay_mult=0.),
        }))
