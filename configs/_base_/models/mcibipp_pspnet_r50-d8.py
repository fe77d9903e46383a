_base_ = './mcibipp_fcn_r50-d8.py'
model = dict(decode_head=dict(context=dict(type='PSPHead', pool_scales=(1, 2, 3, 6))))
