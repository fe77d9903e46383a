_base_ = './mcibipp_fcn_r50-d8.py'
model = dict(decode_head=dict(context=dict(type='ASPPHead', dilations=(1, 12, 24, 36))))
