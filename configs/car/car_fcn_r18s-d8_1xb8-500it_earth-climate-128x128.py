_base_ = '../baselines/fcn_r18s-d8_1xb8-500it_earth-climate-128x128.py'
model = dict(type='CAREncoderDecoder')
