_base_ = './dgcw_fcn_r101-d8.py'
model = dict(
    decode_head=dict(context=dict(type='ASPPHead', channels=512, dilations=(1, 12, 24, 36))))
