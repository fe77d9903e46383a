_base_ = [
    '../_base_/models/protoseg_fcn_hr48.py',
    '../_base_/datasets/cityscapes.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_80k.py',
]
crop_size = (512, 1024)
data_preprocessor = dict(size=crop_size)
# Classes weigh as in the released code. MMSegmentation's own mean with weights of classes fails where
# pixels are ignored; without it the mean is over all pixels, as that of its unweighted loss.
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(
        loss_decode=dict(
            class_weight=[
                0.8373, 0.9180, 0.8660, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023,
                0.9539, 0.9843, 1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507
            ],
            reduction='none')))
