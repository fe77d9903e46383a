_base_ = ['./segformer_mit-b0s.py', './mdrl_consistency.py']
# on the decoder's own map, at its size, and as it is small in the papers' form: all pixels
model = dict(
    decode_head=dict(
        type='MDRLHead',
        context=dict(type='SegformerHead'),
        key_stride=1,
        loss_stride=1,
        bank=dict(type='DistributionBank', num_distributions=9, momentum=0.999),
        loss_coarse=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
        loss_consistency=_base_.loss_consistency))
