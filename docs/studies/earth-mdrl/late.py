_base_ = '../../../configs/mdrl/mdrl_fcn_r18s-d8_1xb8-500it_earth-climate-128x128.py'
custom_imports = dict(imports=['late_start'])
custom_hooks = [dict(type='LateStart', begin=250)]
