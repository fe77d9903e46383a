_base_ = './car_fcn_r18s-d8_1xb8-500it_earth-climate-128x128.py'
# in the place of the authors' code: concat, linear conv to the width of the head (512 there), losses,
# 1x1 conv + norm + ReLU, classifier
model = dict(position='released', pointwise=['conv_cat'], max_channels=64)
