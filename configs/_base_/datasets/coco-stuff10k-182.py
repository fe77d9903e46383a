"""COCO-Stuff 10k with all 182 classes, 11 of which are never labelled, as in the released MCIBI."""
_base_ = './coco-stuff10k.py'
dataset_type = 'COCOStuff182Dataset'
train_dataloader = dict(dataset=dict(type=dataset_type))
val_dataloader = dict(dataset=dict(type=dataset_type))
test_dataloader = dict(dataset=dict(type=dataset_type))
