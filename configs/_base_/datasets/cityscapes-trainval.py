"""Cityscapes in crops of 512x1024, trained on train and val, for the test server.

What is watched during training is val, which is trained on: no figure to report.
"""
_base_ = './cityscapes.py'
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[
            dict(
                type=_base_.dataset_type,
                data_root=_base_.data_root,
                data_prefix=dict(img_path=f'leftImg8bit/{split}', seg_map_path=f'gtFine/{split}'),
                pipeline=_base_.train_pipeline) for split in ('train', 'val')
        ]))
