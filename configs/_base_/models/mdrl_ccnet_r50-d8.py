_base_ = './mdrl_fcn_r50-d8.py'
model = dict(decode_head=dict(context=dict(type='CCHead', recurrence=2)))
