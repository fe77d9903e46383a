"""Configs of CAR: tables 1 and 2 of the paper."""

import re

import pytest
import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from mmseg_cmdl.models.segmentors.class_aware_regularization import CAR_OPTIONS
from tests import car_figures, timm_stand_in
from tests.test_configs import CONFIGS
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
    assert not model.with_auxiliary_head
    if head == 'cpnet':  # its prior map is of the size of its features
        size = data.rpartition('-')[2]
        crop = model.test_cfg.crop_size
        assert f'{crop[0]}x{crop[1]}' == size
        assert model.decode_head.prior_size == tuple(side // 8 for side in crop)
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
