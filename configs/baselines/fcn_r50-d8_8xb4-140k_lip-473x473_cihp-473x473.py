_base_ = './fcn_r50-d8_8xb4-140k_lip-473x473.py'
# trained on LIP, tested on CIHP val
test_dataloader = dict(dataset=dict(type='CIHPDataset', data_root='data/cihp/'))
