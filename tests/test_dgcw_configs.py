"""DGCW's configs and README against the paper."""

import numpy as np
import pytest

from mmseg_cmdl.config_overrides import parse_override
from tests.test_configs import CONFIGS, PATHS, load, offline, tiny_model, train_step
from tests.test_metafiles import DGCW, MULTI, SINGLE, table_rows

README = CONFIGS / 'dgcw' / 'README.md'
NAMES = [name for name in PATHS if name.startswith('dgcw_')]
BASE = 'dgcw_{}_r101-d8_4xb2-80k_cityscapes-769x769'
OHEM = 'dgcw_deeplabv3_r101-d8-ohem_4xb2-80k_cityscapes-769x769'
SYNTHETIC = 'dgcw_fcn_r18s-d8_1xb8-demo_synthetic-128x128'
CONTEXTS = ('fcn', 'pspnet', 'deeplabv3')
HEAD = 'model.decode_head'
TYPE = f'{HEAD}.layer.type'
# tables 1 and 2, by the options that make each row: R-101, PPM, ASPP
ABLATIONS = {
    f'{HEAD}.layer.norm=sum': ('77.81', '79.60', '80.43'),
    f'{HEAD}.layer.norm=softmax': ('77.46', '79.19', '79.95'),
    f'{HEAD}.layer.norm=tanh': ('77.44', '79.14', '79.92'),
    f'{TYPE}=PointwiseConvs': ('75.90', '78.19', '78.75'),
    f'{TYPE}=GlobalPoolingContext {HEAD}.downsample=1': ('76.01', '78.25', '78.78'),
    f'{TYPE}=SqueezeExcitation {HEAD}.downsample=1': ('76.22', '78.41', '78.83'),
    f'{TYPE}=NonLocal2d {HEAD}.layer.reduction=1 {HEAD}.downsample=1': ('77.34', '78.79', '79.60'),
    f'{TYPE}=NonLocal2d {HEAD}.layer.reduction=1': ('76.85', '78.03', '78.97'),
}
PLAIN = dict(fcn='75.65', pspnet='77.88', deeplabv3='78.61')


def test_readme_has_the_papers_figures():
    rows = {row[0]: row[1:] for row in table_rows(README)}
    for context in CONTEXTS:
        name = BASE.format(context)
        assert rows[f'[{name}]({name}.py)'][:3] == [
            PLAIN[context],
            f'{DGCW[name][SINGLE]:.2f}',
            '-',
        ]
    assert rows[f'[{OHEM}]({OHEM}.py)'][:3] == [
        '-',
        f'{DGCW[OHEM][SINGLE]:.2f}',
        f'{DGCW[OHEM][MULTI]:.2f}',
    ]
    for name, metrics in DGCW.items():
        figure = list(metrics.values())[-1]
        assert any(
            cell and cell.replace('.', '').isdigit() and float(cell) == figure
            for cell in rows[f'[{name}]({name}.py)']
        ), name
    found = {
        row[1].strip('`'): tuple(row[2:5])
        for row in table_rows(README)
        if len(row) == 6 and '=' in row[1]
    }
    assert found == ABLATIONS


@pytest.mark.parametrize('name', NAMES)
def test_settings_are_the_papers(name):
    cfg = load(name)
    head = cfg.model.decode_head
    assert head.layer == dict(type='ChannelWeighting')
    assert head.downsample == 4
    assert head.get('concat_features', False) == ('r101' not in name)
    assert cfg.model.auxiliary_head.in_index == head.in_index - 1
    assert cfg.model.auxiliary_head.loss_decode.loss_weight == 0.4
    crop = cfg.model.data_preprocessor.size
    if name != SYNTHETIC:  # whose images are of the crop's size
        assert cfg.model.test_cfg.mode == 'slide'
        assert tuple(cfg.model.test_cfg.crop_size) == tuple(crop)
        assert all(0 < step < side for step, side in zip(cfg.model.test_cfg.stride, crop))
    if 'r101' not in name:
        return
    assert head.channels == 128
    assert head.align_corners
    assert cfg.model.auxiliary_head.align_corners
    assert cfg.img_ratios == [0.75, 1.0, 1.25, 1.5]
    context = head.get('context')
    if 'pspnet' in name:
        assert context == dict(type='PSPHead', channels=512, pool_scales=(1, 2, 3, 6))
    elif 'deeplabv3' in name:
        assert context == dict(type='ASPPHead', channels=512, dilations=(1, 12, 24, 36))
    else:
        assert context is None
    if 'ohem' in name:
        assert head.sampler.thresh == 0.7
        assert head.sampler.min_kept * cfg.train_dataloader.batch_size == 100000


def test_train_and_val_together():
    cfg = load('dgcw_deeplabv3_r101-d8-ohem_4xb2-80k_cityscapes-trainval-769x769')
    prefixes = [part.data_prefix for part in cfg.train_dataloader.dataset.datasets]
    assert prefixes == [
        dict(img_path=f'leftImg8bit/{split}', seg_map_path=f'gtFine/{split}')
        for split in ('train', 'val')
    ]
    train = load(OHEM)
    assert cfg.model == train.model
    assert [part.pipeline for part in cfg.train_dataloader.dataset.datasets] == [
        train.train_pipeline
    ] * 2


def test_trains_every_parameter_of_every_compared_context():
    """Two steps, as the non-local layer starts as the identity."""
    for options in ABLATIONS:
        cfg = offline(load(SYNTHETIC))
        cfg.merge_from_dict(dict(map(parse_override, options.split())))
        model = tiny_model(cfg)
        for _ in range(2):
            log, norms = train_step(model, cfg)
        assert np.isfinite(log['loss']), options
        assert all(norm > 0 for key, norm in norms.items() if 'decode_head' in key), options
