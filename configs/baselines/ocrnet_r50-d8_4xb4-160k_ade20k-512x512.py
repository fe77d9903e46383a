_base_ = [
    '../_base_/models/ocrnet_r50-d8.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_160k.py',
]
crop_size = (512, 512)
data_preprocessor = dict(size=crop_size)
decode_head = [dict(head, num_classes=150) for head in _base_.model.decode_head]
model = dict(data_preprocessor=data_preprocessor, decode_head=decode_head)
