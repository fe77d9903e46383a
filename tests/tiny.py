"""The smallest real job: images on disk and a stock MMSegmentation config that learns them.

The config names nothing of mmseg_cmdl and has no `custom_imports`: what it needs of this package
(the seams in compat.py) must come from whoever starts it.
"""

import numpy as np
from mmengine.config import Config
from PIL import Image

CLASSES = ('ground', 'box', 'bar')
PALETTE = ((40, 40, 40), (220, 60, 60), (60, 60, 220))

CONFIG = """
default_scope = 'mmseg'
size = ({size}, {size})
metainfo = dict(classes={classes!r}, palette={palette!r})
norm_cfg = dict(type='BN', requires_grad=True)
load_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
]
train_pipeline = [*load_pipeline, dict(type='RandomFlip', prob=0.5), dict(type='PackSegInputs')]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='TestTimeAug', transforms=[
        [dict(type='Resize', scale_factor=1.0, keep_ratio=True)],
        [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
        [dict(type='LoadAnnotations')],
        [dict(type='PackSegInputs')],
    ]),
]


def loader(split, sampler, pipeline):
    return dict(
        batch_size=2, num_workers=0, sampler=sampler,
        dataset=dict(
            type='BaseSegDataset', data_root={root!r}, metainfo=metainfo, pipeline=pipeline,
            data_prefix=dict(img_path='images/' + split, seg_map_path='annotations/' + split),
            img_suffix='.png', seg_map_suffix='.png', reduce_zero_label=False))


train_dataloader = loader('train', dict(type='InfiniteSampler', shuffle=True), train_pipeline)
val_dataloader = loader('val', dict(type='DefaultSampler', shuffle=False), test_pipeline)
val_dataloader['batch_size'] = 1
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[110.0] * 3, std=[60.0] * 3, bgr_to_rgb=True, pad_val=0,
        seg_pad_val=255, size=size),
    backbone=dict(
        type='ResNetV1c', depth=18, stem_channels=8, base_channels=8, num_stages=4,
        out_indices=(3,), strides=(1, 1, 2, 1), dilations=(1, 1, 1, 2), norm_cfg=norm_cfg),
    decode_head=dict(
        type='FCNHead', in_channels=64, in_index=0, channels=16, num_convs=1, concat_input=False,
        num_classes={num_classes}, norm_cfg=norm_cfg, align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', loss_weight=1.0)),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
tta_model = dict(type='SegTTAModel')

optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=5e-4))
param_scheduler = [
    dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end={iterations}, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters={iterations}, val_interval={iterations})
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook', by_epoch=False, interval={interval}, save_best='mIoU'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'))
env_cfg = dict(
    cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='gloo'))
visualizer = dict(
    type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
"""


def write_dataset(root, train=4, val=2, size=32, seed=0):
    """Images of a red box and a blue bar on grey, and their labels, in the usual two folders."""
    generator = np.random.default_rng(seed)
    for split, count in (('train', train), ('val', val)):
        for kind in ('images', 'annotations'):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            label = np.zeros((size, size), np.uint8)
            y, x = generator.integers(0, size // 2, 2)
            label[y : y + size // 2, x : x + size // 2] = 1
            column = generator.integers(0, size - size // 4)
            label[:, column : column + size // 4] = 2
            image = np.array(PALETTE)[label] + generator.integers(-30, 30, (size, size, 3))
            label[0] = 255
            image = Image.fromarray(image.clip(0, 255).astype(np.uint8))
            image.save(root / 'images' / split / f'{index}.png')
            Image.fromarray(label).save(root / 'annotations' / split / f'{index}.png')
    return root


def config_text(root='', iterations=4, interval=2, size=32):
    """The stock config for `write_dataset`'s folder."""
    return CONFIG.format(
        root=str(root),
        iterations=iterations,
        interval=interval,
        size=size,
        classes=CLASSES,
        palette=[list(colour) for colour in PALETTE],
        num_classes=len(CLASSES),
    )


def write_config(path, root, **options):
    """Write the stock config for `write_dataset`'s folder to `path`."""
    path.write_text(config_text(root, **options))
    return path


def config(**options):
    """The stock config, to be changed."""
    return Config.fromstring(config_text(**options), '.py')


def spoil(annotation, fault):
    """Makes one annotation what data at a user's may be.

    Args:
        annotation (Path): A file of `write_dataset`.
        fault (str): 'label', 'gone', 'cut' or 'size'.

    Returns:
        str: What an error must say of it, beside the name of the file.
    """
    label = np.array(Image.open(annotation))
    if fault == 'gone':
        annotation.unlink()
        return 'is not there, the annotation of'
    if fault == 'cut':
        annotation.write_bytes(annotation.read_bytes()[:60])
        return 'can not be used: LoadAnnotations'
    if fault == 'size':
        Image.fromarray(label[:20, :24]).save(annotation)
        return 'is 20x24 where its image'
    Image.fromarray(np.full_like(label, 77)).save(annotation)
    return r'labels \[77\] of'
