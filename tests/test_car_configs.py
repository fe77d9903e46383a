"""Configs of CAR: tables 1 and 2 of the paper."""

import re

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, MODELS

from mmseg_cmdl.models.segmentors.class_aware_regularization import CAR_OPTIONS
from tests import car_figures, timm_stand_in
from tests.test_configs import CONFIGS, HEADS, final_head, tiny_batch, tiny_model, train_step
from tests.test_configs import load as as_shipped

# for a CPU and no row of the paper
SMALL = [
    'car_fcn_r18s-d8_1xb8-200it_camvid-180x240',
    'car_fcn_r18s-d8_1xb8-500it_earth-climate-128x128',
    'car-released_fcn_r18s-d8_1xb8-500it_earth-climate-128x128',
]
# the rows of the paper's tables: CAR's configs, and the plain ones of the same schedule
PATHS = {
    path.stem: path
    for path in sorted([*CONFIGS.glob('car/*.py'), *CONFIGS.glob('baselines/*_4xb4-30k_*.py')])
    if path.stem not in SMALL
}
PASCAL = car_figures.SETTINGS['pascal']
LOSSES = [
    'IntraClassCenterToPixelLoss',
    'InterClassCenterToCenterLoss',
    'InterClassCenterToPixelLoss',
]
NAME = re.compile(
    r'(?:(pointwise|car[a-z0-9-]*)_)?([a-z0-9]+)_([a-z0-9-]+)_4xb4-30k_'
    r'(pascal-context-59-480x480|coco-stuff10k-512x512)'
)

every_config = pytest.mark.parametrize('name', PATHS)


def load(name):
    cfg = as_shipped(name)
    init_default_scope('mmseg')
    cfg.model.pretrained = None
    cfg.model.backbone.pop('init_cfg', None)
    if cfg.model.backbone.type == 'TIMMLastMap':  # timm can't be imported everywhere
        cfg.model.backbone = dict(type=timm_stand_in.LastMapStandIn)
    return cfg


def parts(name):
    return NAME.fullmatch(name).groups()


def plain_name(name):
    return name if parts(name)[0] is None else name.partition('_')[2]


def build(cfg):
    """Without memory where the backbone allows it."""
    if cfg.model.backbone.type == 'SwinTransformer':
        cfg.model.backbone.depths = [1, 1, 1, 1]
        return MODELS.build(cfg.model)
    with torch.device('meta'):
        return MODELS.build(cfg.model)


def test_every_row_of_both_tables_has_a_config():
    assert set(PATHS) == set(car_figures.PAPER)


@every_config
def test_config_does_what_its_name_and_the_paper_say(name):
    _, head, backbone, data = parts(name)
    cfg = load(name)
    assert cfg.custom_imports == dict(imports=['mmseg_cmdl'], allow_failed_imports=False)
    assert cfg.default_scope == 'mmseg'
    assert final_head(cfg.model).type == HEADS[head]
    if backbone.startswith('r'):
        assert f'r{cfg.model.backbone.depth}-d8' == backbone
        assert (
            as_shipped(name).model.pretrained
            == f'open-mmlab://resnet{cfg.model.backbone.depth}_v1c'
        )
        assert cfg.model.backbone.strides == (1, 2, 1, 1)
    elif backbone.startswith('swin'):
        assert cfg.model.backbone.embed_dims == {'swin-t': 96, 'swin-l': 192}[backbone]
        assert backbone[:6].replace('-', '_') in as_shipped(name).model.backbone.init_cfg.checkpoint
    elif backbone.startswith('efficientnet'):
        assert as_shipped(name).model.backbone.model_name == 'tf_efficientnet_b5'
        assert as_shipped(name).model.backbone.output_stride == 8
    classes = DATASETS.get(cfg.train_dataloader.dataset.type).METAINFO['classes']
    assert len(classes) == {'p': 59, 'c': 171}[data[0]]
    heads = cfg.model.decode_head if head == 'ocrnet' else [cfg.model.decode_head]
    assert {h.num_classes for h in heads} == {len(classes)}
    assert cfg.model.get('auxiliary_head') is None
    size = tuple(map(int, data.rpartition('-')[2].split('x')))
    if head == 'cpnet':
        assert {8 * cfg.model.decode_head.prior_size} == set(size)
        assert tuple(cfg.model.test_cfg.crop_size) == size
    assert tuple(cfg.model.data_preprocessor.size) == size
    crops = [
        tuple(step.crop_size)
        for step in cfg.train_dataloader.dataset.pipeline
        if step.type == 'RandomCrop'
    ]
    assert crops == [size]

    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr) == ('SGD', 0.01)
    assert optimizer.weight_decay == 0.001
    assert cfg.train_cfg.max_iters == cfg.param_scheduler[0].end == 30000
    assert 4 * cfg.train_dataloader.batch_size == 16


@every_config
def test_only_what_car_adds_differs_from_the_plain_config(name):
    cfg, plain = as_shipped(name).to_dict(), as_shipped(plain_name(name)).to_dict()
    model = cfg['model']
    for key in CAR_OPTIONS:
        model.pop(key, None)
    if name != plain_name(name):
        assert model.pop('type') == 'CAR' + plain['model'].pop('type')
    assert cfg == plain


@pytest.mark.parametrize('name', SMALL)
def test_a_small_config_is_the_baseline_of_its_name_and_car(name):
    cfg = as_shipped(name).to_dict()
    method, _, plain = name.partition('_')
    if method == 'car-released':
        released = dict(position='released', pointwise=['conv_cat'], max_channels=64)
        assert {key: cfg['model'].pop(key) for key in released} == released
    assert cfg['model'].pop('type') == 'CAREncoderDecoder'
    plain = as_shipped(plain).to_dict()
    assert plain['model'].pop('type') == 'EncoderDecoder'
    assert cfg == plain


@every_config
def test_builds_with_the_losses_and_convs_of_its_row(name):
    method, head, backbone, data = parts(name)
    model = build(load(name))
    if method is None:
        assert not hasattr(model, 'car')
        return
    wanted = LOSSES[: 0 if method == 'pointwise' else 1 if method.startswith('car-intra') else 3]
    if 'intra-c2c' in method:
        wanted = LOSSES[:2]
    assert [type(loss).__name__ for loss in model.car.losses] == wanted
    assert all(loss.loss_weight == 1 and loss.formulation == 'paper' for loss in model.car.losses)
    reduced = data.startswith('coco') and (head, backbone) in car_figures.REDUCED
    for loss in model.car.losses[1:]:
        expected = 0.25 if reduced or type(loss).__name__ == LOSSES[2] else 0.5
        assert loss.threshold == expected
    assert (model.car.linear is None) == (method == 'pointwise')
    if head not in ('ocrnet', 'caa'):
        assert bool(model.car.spatial_sizes) == ('3x3' not in method)
    # between what relates pixels to one another and the classifier, convs are 1x1
    last = {
        'FCNHead': 'conv_cat.conv',
        'NLHead': 'conv_cat.conv',
        'CCHead': 'conv_cat.conv',
        'ASPPHead': 'bottleneck.conv',
        'DAHead': 'pam_out_conv.conv',
        'UPerHead': 'fpn_bottleneck.conv',
        'CPHead': 'bottleneck.conv',
        'CAAHead': 'bottleneck.conv',
        'OCRHead': 'object_context_block.bottleneck.conv',
    }
    conv = model.regularized_head.get_submodule(last[type(model.regularized_head).__name__])
    assert conv.kernel_size == ((3, 3) if '3x3' in method else (1, 1))


@pytest.mark.parametrize(
    'name',
    [
        *(
            f'car_{head}_{backbone}_{PASCAL}'
            for head, backbone in [
                ('nonlocal', 'r50-d8'),
                ('ocrnet', 'hr48'),
                ('upernet', 'swin-t'),
                ('cpnet', 'r101-d8'),
                ('caa', 'efficientnet-b5-d8'),
            ]
        ),
        f'pointwise_nonlocal_r50-d8_{PASCAL}',
    ],
)
def test_trains_one_step_and_predicts(name):
    cfg = load(name)
    if 'depth' in cfg.model.backbone:
        cfg.model.backbone.update(depth=18, base_channels=16)
        cfg.model.decode_head.update(in_channels=128, channels=32)
        if 'cpnet' in name:
            size = tiny_batch(2)['inputs'][0].shape[-1] // 8
            cfg.model.decode_head.update(prior_size=size, prior_channels=16)
            cfg.model.test_cfg.update(crop_size=(8 * size, 8 * size), stride=(8, 8))
    elif 'caa' in name:
        cfg.model.decode_head.update(attention_channels=16, channels=16)
    elif 'depths' in cfg.model.backbone:
        cfg.model.backbone.depths = [1, 1, 1, 1]
        cfg.model.decode_head.channels = 32
    else:
        for stage in cfg.model.backbone.extra.values():
            stage.update(num_modules=1, num_blocks=[1] * stage.num_branches)
    model = tiny_model(cfg)
    log, norms = train_step(model, cfg)
    assert np.isfinite(list(log.values())).all(), log
    terms = {key for key in log if key.startswith('car.')}
    assert len(terms) == (0 if name.startswith('pointwise') else 3)
    assert log['loss'] == pytest.approx(
        sum(value for key, value in log.items() if 'loss' in key and key != 'loss'), rel=1e-4
    )
    if terms:
        (norm,) = [norm for key, norm in norms.items() if key.endswith('car.linear.weight')]
        assert norm > 0
    model.eval()
    (result,) = model.test_step(tiny_batch(model.num_classes, images=1))
    assert result.seg_logits.data.shape[0] == 59


def test_readme_has_the_papers_figures():
    rows = {}
    for line in (CONFIGS / 'car' / 'README.md').read_text().splitlines():
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        link = re.fullmatch(r'\[([\w-]+)\]\((?:\.\./baselines/)?\1\.py\)', cells[0])
        if link and 'r18s' not in link[1]:  # the paper has nothing on small networks
            rows.setdefault(link[1], []).append(cells[-2])
    assert rows.keys() == car_figures.PAPER.keys()
    for name, figures in rows.items():
        assert set(figures) == {car_figures.PAPER[name]}, name
