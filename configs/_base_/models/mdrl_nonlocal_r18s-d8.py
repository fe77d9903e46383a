_base_ = './mdrl_fcn_r18s-d8.py'
model = dict(
    decode_head=dict(
        context=dict(type='NLHead', reduction=2, use_scale=True, mode='embedded_gaussian')))
