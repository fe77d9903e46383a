# For data sets with left and right classes: `--tta` swaps them back in flipped predictions.
_base_ = './default_runtime.py'
tta_model = dict(
    type='LeftRightTTAModel', swap_seg_labels=[(14, 15), (16, 17), (18, 19)])
