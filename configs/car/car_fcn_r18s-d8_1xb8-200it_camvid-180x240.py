_base_ = '../baselines/fcn_r18s-d8_1xb8-200it_camvid-180x240.py'
model = dict(type='CAREncoderDecoder')
