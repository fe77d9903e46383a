_base_ = './dgcw_fcn_r101-d8.py'
model = dict(
    decode_head=dict(context=dict(type='PSPHead', channels=512, pool_scales=(1, 2, 3, 6))))
