_base_ = [
    '../_base_/models/ocrnet_hr48.py',
    '../_base_/datasets/pascal_context_59.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_30k.py',
]
crop_size = (480, 480)
data_preprocessor = dict(size=crop_size)
decode_head = [dict(head, num_classes=59) for head in _base_.model.decode_head]
model = dict(data_preprocessor=data_preprocessor, decode_head=decode_head)
