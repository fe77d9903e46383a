"""Every shipped config loads, builds, trains a step, predicts, and rebuilds from its dump."""

import ast
import copy
import inspect
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import cv2
import mmseg
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.models.backbones import timm_backbone
from mmseg.registry import DATASETS, MODELS
from mmseg.structures import SegDataSample

from mmseg_cmdl.config_overrides import parse_override
from mmseg_cmdl.conversion import build_without_memory
from tests.paths import ROOT, child_environment
from tests.reference import mdrl
from tests.test_metafiles import ABLATIONS, MCIBI_ABLATIONS

CONFIGS = ROOT / 'configs'
MMSEG_CONFIGS = Path(mmseg.__file__).parent / '.mim' / 'configs'
BASES = sorted(path for path in CONFIGS.rglob('*.py') if '_base_' in path.parts)
PATHS = {path.stem: path for path in sorted(CONFIGS.rglob('*.py')) if path not in BASES}
CONSISTENCY = CONFIGS / '_base_' / 'models' / 'mdrl_consistency.py'
ABLATED = 'mdrl_fcn_r50-d8_4xb2-80k_cityscapes-512x1024'
LITE0 = 'mdrl_fcn_efficientnet-lite0-d8_1xb8-4k_camvid-240x320'
SMALL = 'mdrl_fcn_r18s-d8_1xb8-200it_camvid-180x240'
SMALL_PLAIN = 'fcn_r18s-d8_1xb8-demo_synthetic-128x128'
HAS_TIMM = timm_backbone.timm is not None
DATASET_TYPES = dict(
    ade20k='ADE20KDataset',
    camvid='CamVidDataset',
    cityscapes='CityscapesDataset',
    synthetic='SyntheticScenesDataset',
    lip='LIPDataset',
    cihp='CIHPDataset',
    **{
        'coco-stuff164k': 'COCOStuffDataset',
        'coco-stuff10k': 'COCOStuffDataset',
        'coco-stuff10k-182': 'COCOStuff182Dataset',
        'cityscapes-trainval': 'CityscapesDataset',
        'earth-climate': 'EarthClimateDataset',
        'pascal-context': 'PascalContextDataset',
        'pascal-context-59': 'PascalContextDataset59',
    },
    voc12aug='PascalVOCDataset',
)
# by the name of a network
HEADS = {
    'fcn': 'FCNHead',
    'pspnet': 'PSPHead',
    'ccnet': 'CCHead',
    'ocrnet': 'OCRHead',
    'deeplabv3': 'ASPPHead',
    'nonlocal': 'NLHead',
    'segformer': 'SegformerHead',
    'upernet': 'UPerHead',
    'danet': 'DAHead',
    'cpnet': 'CPHead',
    'caa': 'CAAHead',
}
METHODS = dict(
    mdrl='MDRLHead',
    mcibi='MCIBIHead',
    mcibipp='MCIBIPlusPlusHead',
    protoseg='ProtoSegHead',
    dgcw='DGCWHead',
)
# where a paper has one of its own for a dataset; 0.01 elsewhere
LEARNING_RATES = {
    'dgcw_pascal-context': 0.005,
    'dgcw_ade20k': 0.02,
    'mcibi_coco-stuff10k-182': 0.001,
    'mcibipp_coco-stuff10k-182': 0.001,
    'mcibipp_pascal-context-59': 0.004,
    'mdrl_coco-stuff10k': 0.001,
}
# learning rate, its floor and weight decay of the released toolboxes
RELEASED_SCHEDULES = {
    62000: (0.001, 1e-5, 1e-4),
    2200: (0.02, 2e-4, 1e-4),
    30000: (0.01, 1e-4, 1e-3),  # CAR's
}
# networks that train with AdamW, as published: learning rate, weight decay, iterations of warm-up
ADAMW = {
    'segformer_mit-b0s_1xb8-500it': (0.001, 0.01, 50),
    'upernet_mscan-ts_1xb8-500it': (0.001, 0.01, 50),
    'segformer_mit-b': (6e-5, 0.01, 1500),
    'upernet_swin-t': (6e-5, 0.01, 1500),
    'upernet_vit-s14': (6e-5, 0.01, 1500),
    'upernet_swin-l_8xb2-160k': (6e-5, 0.01, 1500),
    'upernet_convnext-t': (1e-4, 0.05, 1500),
}
# by the name of a backbone: class, options that tell it from its like, and its weights
BACKBONES = {
    'mit-b0s': ('MixVisionTransformer', dict(embed_dims=16), None),
    'mit-b0': ('MixVisionTransformer', dict(embed_dims=32, num_layers=[2] * 4), 'mit_b0'),
    'mit-b2': ('MixVisionTransformer', dict(embed_dims=64, num_layers=[3, 4, 6, 3]), 'mit_b2'),
    'mscan-ts': ('MSCAN', dict(embed_dims=[16, 32, 80, 128]), None),
    'swin-t': ('SwinTransformer', dict(embed_dims=96, depths=[2, 2, 6, 2]), 'swin_tiny'),
    'swin-l': (
        'SwinTransformer', dict(embed_dims=192, depths=[2, 2, 18, 2]), 'swin_large_patch4_window',
    ),
    'convnext-t': ('mmpretrain.ConvNeXt', dict(arch='tiny'), 'convnext-tiny'),
    'vit-s14-dinov2': (
        'TIMMBackbone', dict(model_name='vit_small_patch14_dinov2.lvd142m', pretrained=True), None,
    ),
    'stdc1': ('STDCContextPathNet', {}, None),
}  # fmt: skip
BACKBONES['vit-s14-dinov2-frozen'] = BACKBONES['vit-s14-dinov2']
CAR_TO_TRAIN = [
    f'{network}_4xb4-30k_pascal-context-59-480x480'
    for network in (
        'car_nonlocal_r50-d8',
        'pointwise_nonlocal_r50-d8',
        'car_ocrnet_hr48',
        'car_upernet_swin-t',
        'car_cpnet_r101-d8',
        'car_caa_efficientnet-b5-d8',
    )
]
TINY = 64

every_config = pytest.mark.parametrize('name', PATHS)


@cache
def _loaded(name):
    return Config.fromfile(PATHS[name])


def load(name):
    return copy.deepcopy(_loaded(name))


def offline(cfg):
    """The same model without pretrained weights; where timm can't be imported, a stand-in."""
    init_default_scope('mmseg')
    cfg.model.pretrained = None
    backbone, head = cfg.model.backbone, final_head(cfg.model)
    for part in (backbone, backbone.get('backbone_cfg', {})):
        part.pop('init_cfg', None)
    if backbone.type in ('SwinTransformer', 'TIMMBackbone', 'mmpretrain.ConvNeXt'):
        if head.channels == 512:
            head.channels = 32
        if 'depths' in backbone:
            backbone.depths = [1, 1, 1, 1]
    if cfg.optim_wrapper.type == 'AmpOptimWrapper':  # not on a CPU
        cfg.optim_wrapper.type = 'OptimWrapper'
        del cfg.optim_wrapper['loss_scale']
    if backbone.type in ('TIMMBackbone', 'TIMMLastMap', 'mmpretrain.ConvNeXt'):
        backbone.pretrained = False
        if backbone.type == 'mmpretrain.ConvNeXt' or not HAS_TIMM:
            stand_in = dict(type='TIMMStandIn')
            if backbone.type == 'mmpretrain.ConvNeXt':
                stand_in = dict(type='ConvNeXtStandIn')
            elif backbone.type == 'TIMMLastMap':
                stand_in = dict(type='LastMapStandIn')
            elif 'vit' in backbone.model_name:
                stand_in.update(channels=[384] * 4, strides=[16, 1, 1, 1])
            cfg.model.backbone = stand_in
            cfg.merge_from_dict(
                dict(
                    custom_imports=dict(
                        imports=[*cfg.custom_imports.imports, 'tests.timm_stand_in']
                    )
                )
            )
            import tests.timm_stand_in  # noqa: F401
    if cfg.model.backbone.type == 'VisionTransformer':  # 300 M parameters otherwise
        cfg.model.backbone.update(num_layers=4, out_indices=(0, 1, 2, 3))
    if head.type == 'CPHead':  # its prior map is of the size of its features
        head.update(prior_size=TINY // 8)
        cfg.model.test_cfg.update(crop_size=(TINY, TINY), stride=(8, 8))
    for stage in cfg.model.backbone.get('extra', {}).values():  # HRNet, of 60 blocks otherwise
        stage.update(num_modules=1, num_blocks=[1] * stage.num_branches)
    return cfg


def learning_rate(name):
    method, dataset = name.split('_')[0], name.split('_')[-1].rpartition('-')[0]
    if adamw(name):
        return ADAMW[adamw(name)][0]
    if '-demo_' in name:
        return 0.2
    if '-2200it_' in name:
        return 0.02
    return 0.05 if '-500it_' in name else LEARNING_RATES.get(f'{method}_{dataset}', 0.01)


def adamw(name):
    """The network of a config that trains with AdamW, and None for SGD."""
    networks = () if '-30k_' in name else ADAMW  # as CAR's paper trains all of its networks
    return next((network for network in networks if f'_{network}' in f'_{name}'), None)


def parts(dataset):
    """The datasets that a ConcatDataset joins, or the one it is."""
    return dataset.get('datasets', [dataset])


def shapes(cfg):
    """Keys and shapes of the model's state, built without memory."""
    model = build_without_memory(copy.deepcopy(cfg))
    return {key: list(value.shape) for key, value in model.state_dict().items()}


def tiny_model(cfg):
    """The config's model for tiny inputs on CPU, initialised as Runner does."""
    cfg.model.data_preprocessor.size = (TINY, TINY)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.init_weights()
    if cfg.model.backbone.type == 'ResNeSt':
        # Untrained and this deep, it doesn't survive a step; ResNet's own start, which it lacks.
        for name, parameter in model.backbone.named_parameters():
            if name.endswith('bn3.weight'):
                torch.nn.init.zeros_(parameter)
    return model


def tiny_batch(num_classes, images=2, size=(TINY, TINY)):
    """Random images, labels in blocks of 16 pixels, and some ignored pixels."""
    generator = np.random.default_rng(0)
    samples = []
    for _ in range(images):
        blocks = generator.integers(0, num_classes, (size[0] // 16 + 1, size[1] // 16 + 1))
        labels = np.kron(blocks, np.ones((16, 16), int))[: size[0], : size[1]]
        labels[:3] = 255
        sample = SegDataSample(
            metainfo=dict(ori_shape=size, img_shape=size, pad_shape=size, img_path='tiny.png')
        )
        sample.gt_sem_seg = PixelData(data=torch.from_numpy(labels)[None])
        samples.append(sample)
    inputs = [
        torch.from_numpy(generator.integers(0, 256, (3, *size), dtype=np.uint8))
        for _ in range(images)
    ]
    return dict(inputs=inputs, data_samples=samples)


def train_step(model, cfg):
    """One training step; its log, and the norm of each parameter's gradient just before it."""
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    norms = {}

    def record(*_):
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                norms[key] = None if parameter.grad is None else float(parameter.grad.norm())

    wrapper.optimizer.register_step_pre_hook(record)
    model.train()
    log = model.train_step(tiny_batch(model.num_classes), wrapper)
    return {key: float(torch.as_tensor(value).detach()) for key, value in log.items()}, norms


def starts_closed(key):
    """An attention that starts behind a gate, or a norm, of zero: that alone has a gradient."""
    return ('.cca.' in key and not key.endswith('.cca.gamma.scale')) or (
        '.nl_block.' in key and '.nl_block.conv_out.bn.' not in key
    )


def final_head(parent):
    """The decode head of a config or model; in a cascade the last one."""
    head = parent.decode_head
    return head[-1] if isinstance(head, (list, torch.nn.ModuleList)) else head


def other_heads(parent):
    """The auxiliary heads of a config or model; in a cascade the head before the last."""
    if isinstance(parent.decode_head, (list, torch.nn.ModuleList)):
        return [parent.decode_head[-2]]
    auxiliary = getattr(parent, 'auxiliary_head', None)
    if auxiliary is None:
        return []
    return list(auxiliary) if isinstance(auxiliary, (list, torch.nn.ModuleList)) else [auxiliary]


def network(name):
    """What of a config makes a network of its own: not classes, depth, or how it is tested."""
    model = load(name).model.to_dict()
    for key in ('pretrained', 'test_cfg', 'data_preprocessor'):
        model.pop(key, None)
    model['backbone'].pop('depth', None)
    if model['backbone'].get('num_layers') == [3, 4, 6, 3]:  # MiT-B2 is B0, deeper and wider
        b0 = load(name.replace('mit-b2', 'mit-b0')).model.to_dict()
        model['backbone'] = b0['backbone']
        model['decode_head']['in_channels'] = b0['decode_head']['in_channels']
    if name.startswith('mcibipp_'):  # layers of the released models, each tested with its head
        head = model['decode_head']
        for key in ('relate_context', 'weights_from', 'context_kernel_size', 'coarse_kernel_size'):
            head.pop(key, None)
        head.pop('final_kernel_size', None)
        if head.pop('pyramid', None) or model['backbone']['type'] != 'ResNetV1c':
            backbone = model['backbone']['type'].removeprefix('LinearStem')
            return f'mcibipp with a pyramid, or on another backbone: {backbone}'
    text = re.sub(r"'(num_classes|min_kept)': \d+", '', str(model))
    return re.sub(r"'dilations': [(\[][^)\]]*[)\]]", '', text)


def models_to_train():
    """One config of each network, the shallowest; of those with CAR one of each kind of head."""
    chosen = {}
    for name in sorted(PATHS, key=lambda name: load(name).model.backbone.get('depth', 0)):
        if 'car' not in load(name).model.type.lower() and '-30k_' not in name:
            chosen.setdefault(network(name), name)
    return [*chosen.values(), *CAR_TO_TRAIN]


@pytest.mark.parametrize('name', models_to_train())
def test_trains_one_step_and_predicts(name):
    cfg = offline(load(name))
    model = tiny_model(cfg)
    classifiers = [head.conv_seg for head in (final_head(model), *other_heads(model))]
    before = [layer.weight.detach().clone() for layer in classifiers]
    if name.startswith('mcibi_'):
        # as after the first iterations: nothing that relates to a memory of zeros has a gradient
        memory = model.decode_head.bank.features.normal_().clone()
        model.decode_head.bank.filled.fill_(True)
        sizes = []
        model.decode_head.bottleneck.register_forward_hook(
            lambda module, inputs, pixels: sizes.append(pixels.shape[2:])
        )
    log, norms = train_step(model, cfg)

    assert np.isfinite(list(log.values())).all(), log
    assert log['loss'] == pytest.approx(
        sum(value for key, value in log.items() if 'loss' in key and key != 'loss'), rel=1e-4
    )
    # each classifier starts near a uniform guess
    loss_ce = 'decode_1.loss_ce' if model.decode_head is not final_head(model) else 'decode.loss_ce'
    assert log[loss_ce] == pytest.approx(np.log(model.num_classes), rel=0.2)
    still = [
        key
        for key, norm in norms.items()
        if norm is None
        or not np.isfinite(norm)
        or (norm == 0 and 'head' in key and not starts_closed(key))
    ]
    assert not still, f'no gradient, or not a finite one: {still}'
    group = cfg.optim_wrapper.optimizer
    if adamw(name):
        assert (group.type, group.betas) == ('AdamW', (0.9, 0.999))
        assert (group.lr, group.weight_decay) == ADAMW[adamw(name)][:2]
    else:
        assert (group.type, group.lr, group.momentum) == ('SGD', learning_rate(name), 0.9)
    for layer, weight in zip(classifiers, before):
        assert not torch.equal(layer.weight, weight)
    assert sum(key.startswith('car.') for key in log) == (3 if name.startswith('car') else 0)

    if name.startswith('mdrl_'):
        losses = {type(loss).__name__: loss for loss in model.decode_head.consistency.losses}
        assert set(losses) == {'ClassLocalConsistencyLoss', 'ClassGlobalConsistencyLoss'}
        rows = model.state_dict()['decode_head.bank.distributions']
        assert rows.shape == (model.num_classes, 9, model.decode_head.channels)
        torch.testing.assert_close(rows.norm(dim=-1), torch.ones(rows.shape[:2]))
    if name.startswith('mcibi_'):
        head = model.decode_head
        assert (head.momentum.start, head.momentum.power) == (0.9, 0.9)
        assert log['decode.stat_memory_momentum'] == pytest.approx(0.9)
        assert [loss.loss_weight for loss in head.consistency.losses] == [1.0]
        assert head.bank.features.shape == (model.num_classes, head.channels)
        samples = tiny_batch(model.num_classes)['data_samples']
        labels = torch.cat([sample.gt_sem_seg.data for sample in samples])
        if head.loss_stride > 1:  # every so many-th pixel of a decoder's map
            labels = mdrl.nearest_labels(labels, sizes[0])
            labels = labels[:, :: head.loss_stride, :: head.loss_stride]
        moved = (head.bank.features != memory).any(dim=1)
        assert set(moved.nonzero()[:, 0].tolist()) == set(labels.unique().tolist()) - {255}
        assert log['decode.memory_loss_ce'] > 0

    model.eval()
    bank = copy.deepcopy(dict(model.decode_head.named_buffers()))
    size = (TINY, TINY + 1)
    (result,) = model.test_step(tiny_batch(model.num_classes, images=1, size=size))
    assert result.seg_logits.data.shape == (model.num_classes, *size)
    assert result.pred_sem_seg.data.shape == (1, *size)
    assert torch.equal(result.pred_sem_seg.data[0], result.seg_logits.data.argmax(0))
    assert result.seg_logits.data.isfinite().all()
    for key, value in model.decode_head.named_buffers():
        assert torch.equal(value, bank[key]), key


REBUILD = """
import functools, json, re, sys
from unittest import mock
from mmengine.config import Config
import torch
# a transformer reads its drop rates from a tensor, which needs numbers
rates = functools.partial(torch.linspace, device='cpu')
states = {}
for path in sys.argv[1:]:
    cfg = Config.fromfile(path)
    from mmseg.apis import init_model
    # with numbers those made for a CPU, which are small
    device = 'cpu' if re.search('_(r18s|mit-b0s|mscan-ts)', path) else 'meta'
    with torch.device(device), mock.patch.object(torch, 'linspace', rates):
        model = init_model(cfg, device=device)
    states[path] = {key: list(value.shape) for key, value in model.state_dict().items()}
print('STATES' + json.dumps(states))
"""


def test_dumped_configs_rebuild_in_a_fresh_process_elsewhere(tmp_path, pytestconfig):
    folder, elsewhere = tmp_path / 'dumped', tmp_path / 'elsewhere'
    folder.mkdir()
    elsewhere.mkdir()
    expected = {}
    for path in PATHS.values():
        # the layout of a dump takes longer than all else
        cfg = offline(Config(Config.fromfile(path).to_dict(), format_python_code=False))
        dumped = folder / path.name
        cfg.dump(dumped)
        assert '_base_' not in dumped.read_text()
        expected[str(dumped)] = shapes(cfg)
    done = subprocess.run(
        [sys.executable, '-c', REBUILD, *expected],
        cwd=elsewhere,
        env=child_environment(pytestconfig.tests_folder),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    states = json.loads(done.stdout.partition('STATES')[2])
    assert len(states) == len(PATHS)
    for path, state in expected.items():
        assert states[path] == state, path


def distinct(key, but=None):
    """The first config of every distinct value of `key(config)`, less those of such names."""
    seen = {}
    for name in PATHS:
        if but is None or but not in name:
            seen.setdefault(str(key(load(name))), name)
    return list(seen.values())


def runtime_settings(cfg):
    names = (
        'default_hooks',
        'train_cfg',
        'val_cfg',
        'param_scheduler',
        'optim_wrapper',
        'env_cfg',
        'visualizer',
        'log_processor',
        'val_evaluator',
    )
    return {name: cfg[name] for name in names}


# the learning rates of ConvNeXt's stages are of no other backbone
@pytest.mark.parametrize('name', distinct(runtime_settings, but='convnext'))
def test_runner_runs_the_schedule(name, tmp_path):
    """Two iterations with the config's own hooks, loops, optimizer, schedule and metric."""
    cfg, start = load(name), learning_rate(name)
    small = load(SMALL_PLAIN)
    *warm_up, schedule = cfg.param_scheduler
    assert schedule.end == cfg.train_cfg.max_iters
    begin = ADAMW[adamw(name)][2] if adamw(name) else 1000 * ('stdc1' in name)
    assert [(step.type, step.begin, step.end) for step in warm_up] == (
        [('LinearLR', 0, begin)] if begin else []
    )
    assert schedule.begin == begin
    # two steps of four after a warm-up that has ended before
    cfg.param_scheduler = [dict(schedule, begin=0)]
    if adamw(name):
        weight_decay, floor, power = ADAMW[adamw(name)][1], 0.0, 1.0
    else:
        ours = (start, 1e-4, 5e-4)  # MMSegmentation's floor and decay
        released, floor, weight_decay = RELEASED_SCHEDULES.get(schedule.end, ours)
        assert released == start
        power = 0.9
    hook = cfg.default_hooks.checkpoint
    assert hook.interval == cfg.train_cfg.val_interval
    assert cfg.train_cfg.max_iters % hook.interval == 0

    cfg.model = small.model
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[key] = small[key]
        cfg[key].dataset.update(length=2, size=(32, 32))
        cfg[key].update(num_workers=0, persistent_workers=False)
    cfg.merge_from_dict(
        {
            'model.data_preprocessor.size': (32, 32),
            'train_dataloader.batch_size': 2,
            'train_cfg.max_iters': 2,
            'train_cfg.val_interval': 2,
            'param_scheduler.0.end': 5,
            'default_hooks.checkpoint.interval': 2,
            'work_dir': str(tmp_path),
        }
    )
    cfg.train_dataloader.dataset.pipeline = cfg.val_dataloader.dataset.pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='PackSegInputs'),
    ]
    runner = Runner.from_cfg(cfg)
    runner.train()
    optimizer = runner.optim_wrapper.optimizer
    assert isinstance(optimizer, torch.optim.AdamW if adamw(name) else torch.optim.SGD)
    # not one of a frozen backbone, and no norm
    groups = optimizer.param_groups
    group = next(group for group in groups if group['initial_lr'] and group['weight_decay'])
    assert (group['initial_lr'], group['weight_decay']) == (start, weight_decay)
    assert adamw(name) or group['momentum'] == 0.9
    # poly of that power down to the floor, after two of the four steps that `end=5` has
    assert group['lr'] == pytest.approx(floor + (start - floor) * 0.5**power)
    assert 0 <= runner.message_hub.get_scalar('val/mIoU').current() <= 100
    assert (tmp_path / 'best_mIoU_iter_2.pth').is_file()
    assert (tmp_path / 'iter_2.pth').is_file()


@every_config
def test_name_says_what_the_config_does(name):
    fields = re.fullmatch(
        r'(?:(mdrl|mcibi|mcibipp|protoseg|dgcw|pointwise|car[a-z0-9-]*)_)?'
        rf'({"|".join(HEADS)})_'
        rf'(r\d+s?-d8|s101-d8|hr48|vit-l|efficientnet-\w+-d8|swin-l|{"|".join(BACKBONES)})'
        r'(?:-(ohem))?_(\d+)xb(\d+)-(?:amp-)?(\w+?)_'
        r'([a-z0-9-]+?)-(\d+)x(\d+)(?:_([a-z0-9]+)-\9x\10)?',
        name,
    )
    assert fields, f'{name} does not follow the naming scheme'
    (method, context, backbone, hard, _, per_gpu, schedule, dataset, height, width, test) = (
        fields.groups()
    )
    backbone = backbone.removesuffix('-d8')
    cfg = load(name)

    head = final_head(cfg.model)
    plain = HEADS[context]
    assert (hard == 'ohem' or backbone == 'stdc1') == ('sampler' in head)
    assert ('-amp-' in name) == (load(name).optim_wrapper.type == 'AmpOptimWrapper')
    if (method, context) == ('mcibipp', 'upernet'):  # as released: a pyramid of its own
        assert len(head.pyramid.in_channels) == 3
        plain = head.context.type
        assert plain in ('PSPHead', 'ASPPHead')
    if method in METHODS:
        assert head.type == METHODS[method]
        assert (
            head.get('context', dict(type='FCNHead')).type == plain
            if context != 'fcn'
            else ('context' not in head)
        )
    else:
        assert head.type == plain
    assert cfg.model.type.startswith('CAR') == (method not in (None, *METHODS))
    if backbone.startswith('r'):
        assert cfg.model.backbone.strides == (1, 2, 1, 1)
        assert cfg.model.backbone.depth == int(backbone.strip('rs'))
        if cfg.model.get('pretrained'):
            assert cfg.model.pretrained == f'open-mmlab://resnet{cfg.model.backbone.depth}_v1c'
    elif backbone in ('s101', 'hr48', 'vit-l'):
        expected = {
            's101': ('ResNeSt', 'open-mmlab://resnest101'),
            'hr48': ('HRNet', 'open-mmlab://msra/hrnetv2_w48'),
            'vit-l': ('VisionTransformer', 'pretrain/vit_large_p16.pth'),
        }[backbone]
        kind = cfg.model.backbone.type.removeprefix('LinearStem')
        assert (kind, cfg.model.pretrained) == expected
    elif backbone in BACKBONES:
        kind, options, weights = BACKBONES[backbone]
        assert cfg.model.backbone.type == kind
        assert {key: cfg.model.backbone[key] for key in options} == options
        checkpoint = (cfg.model.backbone.get('init_cfg') or {}).get('checkpoint', '')
        assert weights in checkpoint if weights else not checkpoint
        paramwise = cfg.optim_wrapper.get('paramwise_cfg', {})
        frozen = paramwise.get('custom_keys', {}).get('backbone')
        assert (frozen == dict(lr_mult=0.0, decay_mult=0.0)) == backbone.endswith('frozen')
    else:
        assert cfg.model.backbone.model_name == 'tf_' + backbone.replace('-', '_')
        assert cfg.model.backbone.output_stride == 8

    assert cfg.train_dataloader.batch_size == int(per_gpu)
    assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_iters
    iterations = re.fullmatch(r'(\d+)(k|it)', schedule)
    if schedule != 'demo':
        unit = dict(k=1000, it=1)[iterations[2]]
        assert cfg.train_cfg.max_iters == int(iterations[1]) * unit
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        assert {part.type for part in parts(loader.dataset)} == {DATASET_TYPES[dataset]}
    assert {part.type for part in parts(cfg.test_dataloader.dataset)} == {
        DATASET_TYPES[test or dataset]
    }
    size = (int(height), int(width))
    assert tuple(cfg.model.data_preprocessor.size) == tuple(cfg.data_preprocessor.size) == size
    crops = [step.crop_size for step in cfg.train_pipeline if step.type == 'RandomCrop']
    assert crops in ([size], []), crops


@every_config
def test_config_stands_on_its_own(name):
    cfg = Config.fromfile(PATHS[name], import_custom_modules=False)
    assert cfg.custom_imports == dict(imports=['mmseg_cmdl'], allow_failed_imports=False)
    assert cfg.default_scope == 'mmseg'
    classes = DATASETS.get(parts(cfg.train_dataloader.dataset)[0].type).METAINFO['classes']
    for head in (final_head(cfg.model), *other_heads(cfg.model)):
        assert head.num_classes == (2 if head.type == 'STDCHead' else len(classes))  # 2: borders
    if 'LIPDataset' in str(cfg.train_dataloader):
        assert cfg.tta_model.type == 'LeftRightTTAModel'
        assert cfg.tta_model.swap_seg_labels == cfg.left_and_right
        names = [(classes[left], classes[right]) for left, right in cfg.left_and_right]
        assert names == [
            ('Left-arm', 'Right-arm'),
            ('Left-leg', 'Right-leg'),
            ('Left-shoe', 'Right-shoe'),
        ]
    else:
        assert cfg.tta_model.type == 'SegTTAModel'


def base_paths(path):
    """The files that a config names in `_base_`."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == '_base_':
            value = ast.literal_eval(node.value)
            return [value] if isinstance(value, str) else value
    return []


def test_bases_are_relative_inside_the_tree_and_all_used():
    used = set()
    for path in [*PATHS.values(), *BASES]:
        assert '::' not in path.read_text(), f'{path} inherits from a package, not by a path'
        for base in base_paths(path):
            assert base.startswith(('./', '../')), (path, base)
            target = (path.parent / base).resolve()
            assert target.is_file(), (path, base)
            assert CONFIGS in target.parents, (path, base)
            used.add(target)
    assert used >= set(BASES), f'nobody inherits from {set(BASES) - used}'


def test_basenames_are_unique():
    paths = [path for path in CONFIGS.rglob('*.py') if path not in BASES]
    assert sorted(paths) == sorted(PATHS.values())


def test_consistency_losses_are_set_in_one_place():
    expected = Config.fromfile(CONSISTENCY).loss_consistency
    assert [(loss.type, loss.loss_weight) for loss in expected] == [
        ('ClassLocalConsistencyLoss', 0.01),
        ('ClassGlobalConsistencyLoss', 0.05),
    ]
    # the classes' own default
    assert {loss.formulation for loss in expected} == {'released'}
    assert {MODELS.build(dict(type=loss.type)).formulation for loss in expected} == {'released'}
    for name in PATHS:
        if name.startswith('mdrl_'):
            assert load(name).model.decode_head.loss_consistency == expected, name
    setters = [
        path
        for path in CONFIGS.rglob('*.py')
        if re.search('ConsistencyLoss|formulation', path.read_text())
    ]
    assert setters == [CONSISTENCY]


def plain(cfg, drop=()):
    """A config without what tells a method from its baseline."""
    cfg = copy.deepcopy(cfg).to_dict()
    cfg['model'].pop('decode_head')
    if cfg['model']['type'] == 'CascadeEncoderDecoder':  # its first stage is the auxiliary head
        cfg['model'].pop('num_stages')
        cfg['model'].pop('auxiliary_head')
        cfg['model']['type'] = 'EncoderDecoder'
    # 'decode_head' at the top is how a cascade's list takes the number of classes
    for key in ('loss_consistency', 'custom_imports', 'decode_head', 'norm_cfg', 'act_cfg', *drop):
        cfg.pop(key, None)
    # the auxiliary head is as released: wider, and for LIP with another activation
    for key in ('channels', 'act_cfg'):
        if isinstance(cfg['model'].get('auxiliary_head'), dict):
            cfg['model']['auxiliary_head'].pop(key, None)
    return json.loads(json.dumps(cfg))


@pytest.mark.parametrize(
    ('name', 'method'),
    [(name, method) for name in PATHS for method in METHODS if f'{method}_{name}' in PATHS],
)
def test_baseline_differs_in_nothing_but_the_head(name, method):
    ours, theirs = plain(load(f'{method}_{name}')), plain(load(name))
    if 'auxiliary_head' not in theirs['model']:
        ours['model'].pop('auxiliary_head', None)
    if method == 'dgcw':  # tested in windows of the size that it is trained on
        for cfg in (ours, theirs):
            cfg['model'].pop('test_cfg')
    assert theirs == ours


def stock_name(name):
    """What MMSegmentation calls the same without our method."""
    name = name.partition('_')[2]
    for ours, theirs in {
        'deeplabv3_s101-d8': 'resnest_s101-d8_deeplabv3',
        'upernet_swin-t': 'swin-tiny-patch4-window7-in1k-pre_upernet',
        'upernet_convnext-t': 'convnext-tiny_upernet',
        'fcn_stdc1': 'stdc1_in1k-pre',
    }.items():
        name = name.replace(ours, theirs)
    return name


def as_in_mmsegmentation(cfg):
    """`plain`, without names that a file gives to values, and without decay of the head's norms."""
    drop = ('default_hooks', 'tta_pipeline', 'img_ratios', 'checkpoint', 'checkpoint_file', 'ohem')
    cfg = plain(cfg, drop)
    for key in ('cross_entropy', 'auxiliary', 'backbone_norm_cfg'):
        cfg.pop(key, None)
    if cfg['model'].get('pretrained', '') is None:
        del cfg['model']['pretrained']
    paramwise = cfg['optim_wrapper'].get('paramwise_cfg', {})
    paramwise.pop('norm_decay_mult', None)
    for key in ('.bn.', 'head.projection.norm', 'head.consistency.losses.0.norm'):
        paramwise.get('custom_keys', {}).pop(key, None)
    # the maintained fork has its own host for the same files
    return json.loads(re.sub(r'https://[\w.]+/', 'https://host/', json.dumps(cfg)))


@pytest.mark.parametrize(
    'name',
    [
        name
        for name in PATHS
        if name.startswith(('mdrl_', 'mcibi_', 'dgcw_'))
        and 'ocrnet_r50' not in name
        # MMSegmentation has none; those of the second kind have a baseline here
        and not re.search('vit-l|hr48|vit-s14|(swin|convnext)-t.*cityscapes', name)
        and 'ohem' not in name
        and re.search('cityscapes-(512x1024|1024x1024|769x769)$|ade20k-512x512$', name)
    ],
)
def test_baseline_is_mmsegmentations_own(name):
    """Model, data and schedule as in MMSegmentation; checkpoints, tests by scale: ours."""
    (stock,) = MMSEG_CONFIGS.glob(f'*/{stock_name(name)}.py')
    stock = Config.fromfile(stock, import_custom_modules=False)
    assert as_in_mmsegmentation(load(name)) == as_in_mmsegmentation(stock)


@pytest.mark.parametrize(
    'name',
    [
        # another data set, or a deeper backbone, of one that is here
        pytest.param(name, marks=pytest.mark.long)
        if re.search('mit-b2|_cityscapes', name)
        else name
        for name in PATHS
        if adamw(name)
    ],
)
def test_norms_of_the_head_have_no_weight_decay_and_it_learns_as_fast_as_the_plain_one(name):
    cfg = offline(load(name))
    model = build_without_memory(cfg)
    group_of = {
        id(parameter): group
        for group in build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
        for parameter in group['params']
    }
    start = learning_rate(name)
    norms = [module for module in model.decode_head.modules() if 'Norm' in type(module).__name__]
    assert norms
    for module in norms:
        for parameter in module.parameters(recurse=False):
            assert group_of[id(parameter)]['weight_decay'] == 0
    expected = start * 10 if '_segformer_mit-b' in f'_{name}' and '500it' not in name else start
    assert {group_of[id(value)]['lr'] for value in model.decode_head.parameters()} == {expected}
    assert group_of[id(model.decode_head.conv_seg.weight)]['weight_decay'] == ADAMW[adamw(name)][1]
    backbone = {group_of[id(value)]['lr'] for value in model.backbone.parameters()}
    assert backbone == {0.0} if 'frozen' in name else min(backbone) > 0


@pytest.mark.parametrize('name', ['coco-stuff164k', 'coco-stuff10k', 'pascal_context_59'])
def test_datasets_are_as_in_mmsegmentation(name):
    """But for the scales of the multi-scale test, which are of the single-scale size."""
    ours, stock = (
        Config.fromfile(folder / '_base_' / 'datasets' / f'{name}.py').to_dict()
        for folder in (CONFIGS, MMSEG_CONFIGS)
    )
    ours.pop('tta_pipeline')
    stock.pop('tta_pipeline')
    assert ours == stock


def data_settings(cfg):
    return (cfg.train_dataloader.dataset, cfg.test_dataloader.dataset, cfg.tta_pipeline)


def labelled_classes(dataset, num_classes):
    """Classes that the label files of a data set have."""
    if dataset.type == 'COCOStuff182Dataset':
        return set(DATASETS.get(dataset.type).get_label_map().values())
    return set(range(num_classes))


def write_image_and_labels(dataset, root, num_classes):
    """An image and a label map as this dataset has them on disk, every class present."""
    suffixes = inspect.signature(DATASETS.get(dataset.type).__init__).parameters
    if 'img_suffix' not in suffixes:
        return
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (90, 160, 3), dtype=np.uint8)
    num_classes = len(labelled_classes(dataset, num_classes))
    # 0 is dropped when loading
    drops_zero = dataset.type in ('ADE20KDataset', 'PascalContextDataset59')
    offset = int(drops_zero or dataset.get('reduce_zero_label', False))
    labels = generator.integers(0, num_classes + offset, (90, 160), dtype=np.uint8)
    labels[0, :num_classes] = np.arange(num_classes)[:160] + offset
    for key, array, suffix in (
        ('img_path', image, 'img_suffix'),
        ('seg_map_path', labels, 'seg_map_suffix'),
    ):
        folder = root / dataset.data_prefix[key]
        folder.mkdir(parents=True, exist_ok=True)
        ending = dataset.get(suffix) or suffixes[suffix].default or '.png'
        assert cv2.imwrite(str(folder / f'one{ending}'), array)
    if dataset.get('ann_file'):
        listed = root / dataset.ann_file
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text('one\n')


@pytest.mark.parametrize('name', distinct(data_settings))
def test_pipelines_run(name, tmp_path):
    cfg = load(name)
    init_default_scope('mmseg')
    num_classes = final_head(cfg.model).num_classes
    loaders = dict(
        train=cfg.train_dataloader,
        val=cfg.val_dataloader,
        test=cfg.test_dataloader,
        tta=copy.deepcopy(cfg.test_dataloader),
    )
    loaders['tta'].dataset.pipeline = cfg.tta_pipeline
    samples = {}
    for split, loader in loaders.items():
        for dataset in parts(loader.dataset):
            if 'data_root' in dataset:
                dataset.data_root = str(tmp_path)
                write_image_and_labels(dataset, tmp_path, num_classes)
        samples[split] = DATASETS.build(loader.dataset)[0]

    crop = cfg.data_preprocessor.size
    train = samples['train']
    assert train['inputs'].shape[0] == 3
    assert all(0 < side <= most for side, most in zip(train['inputs'].shape[1:], crop))
    assert train['data_samples'].gt_sem_seg.shape == train['inputs'].shape[1:]
    for split in ('train', 'val', 'test'):
        values = set(samples[split]['data_samples'].gt_sem_seg.data.unique().tolist())
        assert set() < values - {255} <= set(range(num_classes)), (split, values)
    for split in ('val', 'test'):
        sample = samples[split]['data_samples']
        assert sample.gt_sem_seg.shape == tuple(sample.ori_shape[:2])
        if 'data_root' in loaders[split].dataset:
            found = set(sample.gt_sem_seg.data.unique().tolist())
            assert labelled_classes(loaders[split].dataset, num_classes) <= found

    single = samples['test']['inputs'].shape[1:]
    views = samples['tta']['inputs']
    flips = [sample.metainfo.get('flip') for sample in samples['tta']['data_samples']]
    truth = samples['test']['data_samples'].gt_sem_seg.data
    assert all(torch.equal(s.gt_sem_seg.data, truth) for s in samples['tta']['data_samples'])
    assert len(views) == 2 * len(cfg.img_ratios)
    assert flips.count(True) == flips.count(False) == len(cfg.img_ratios)
    heights = sorted({view.shape[1] for view in views})
    assert heights == pytest.approx([ratio * single[0] for ratio in sorted(cfg.img_ratios)], abs=1)


def documented_options(readme, ablated):
    """(config, options) of every command and ablation in a README."""
    text = readme.read_text().replace('\\\n', ' ')
    found = []
    for line in text.splitlines():
        if '--cfg-options ' in line:
            config = re.search(r'([\w-]+_\dxb[\w-]+)\.py', line)[1]
            # up to the closing backtick of a command within a sentence
            options = line.partition('--cfg-options ')[2].partition('`')[0]
            found.append((config, options.split()))
        elif line.startswith('|'):
            for cell in re.findall(r'`([^`]*)`', line):
                if re.fullmatch(r'[\w.]+=\S+( [\w.]+=\S+)*', cell):
                    found.append((ablated, cell.split()))
    return found


DOCUMENTED = [
    case
    for method, ablated in (
        ('mdrl', ABLATED),
        ('mcibi', 'mcibi_fcn_r50-d8_4xb4-160k_ade20k-512x512'),
        ('dgcw', 'dgcw_fcn_r101-d8_4xb2-80k_cityscapes-769x769'),
    )
    for case in documented_options(CONFIGS / method / 'README.md', ablated)
]
# where a built head has an option, if not under its own name
PLACES = {
    'bank.init': 'bank.initial_path',
    'loss_consistency': 'consistency.losses',
    'memory_momentum': 'momentum.start',
    'momentum_power': 'momentum.power',
}


def built_option(head, key):
    """What a built head has for an option of its config."""
    for option, place in PLACES.items():
        key = key.replace(option, place)
    for part in key.split('.'):
        if part == 'type':
            head = type(head).__name__
        else:
            head = head[int(part)] if part.isdigit() else getattr(head, part)
    return head


def test_readme_documents_the_papers_ablations():
    documented = {' '.join(options) for _, options in DOCUMENTED}
    assert {*ABLATIONS, *MCIBI_ABLATIONS} <= documented


@pytest.mark.parametrize(
    ('name', 'options'), DOCUMENTED, ids=[' '.join(options) for _, options in DOCUMENTED]
)
def test_documented_options_merge_and_build(name, options):
    given = dict(map(parse_override, options))
    cfg = load(name)
    cfg.merge_from_dict(given)
    for key, value in given.items():
        at = cfg
        for part in key.split('.'):
            at = at[int(part)] if part.isdigit() else at[part]
        assert at == value, key

    parts = {key.split('.')[0] for key in given}
    assert parts <= {'model', 'randomness', 'train_dataloader', 'test_dataloader', 'test_evaluator'}
    assert cfg.val_evaluator == load(name).val_evaluator
    if any('FILE' in option for option in options):
        return  # test_weights_file_is_loaded
    with torch.device('meta'):
        head = MODELS.build(offline(cfg).model).decode_head
    for key, value in given.items():
        key = key.removeprefix('model.decode_head.')
        if key == 'loss_memory':
            assert not len(head.consistency.losses)
        elif key == 'embedding':
            assert (head.projection is None) == (value == 'pixel')
        elif key == 'concat_features':
            assert head.fusion.in_channels == 2048 + 128
        elif key.split('.')[0] not in parts:
            assert built_option(head, key) == value
        if key == 'bank.num_distributions':
            assert head.bank.distributions.shape[1] == value
            assert head.fuse_memory.conv.in_channels == value * head.channels
    if name.startswith('dgcw_'):
        convs = [conv for conv in head.layer.modules() if isinstance(conv, torch.nn.Conv2d)]
        assert {(conv.in_channels, conv.out_channels) for conv in convs} <= {(128, 128)}
    if 'randomness.seed' in given:
        assert 'seed' in inspect.signature(Runner.set_randomness).parameters


@pytest.mark.parametrize(
    ('stock', 'change', 'context'),
    [
        ('fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py', "dict(type='MDRLHead')", None),
        (
            'pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py',
            "dict(type='MDRLHead', context=dict(type='PSPHead'))",
            'PSPHead',
        ),
        ('fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py', "dict(type='MCIBIHead')", None),
        *(
            (
                stock,
                # all: of few pixels, as at stride 32, none may have the right distribution yet
                "dict(type='MDRLHead', bank=dict(update_pixels='all'), "
                f"context=dict(type='{context}'))",
                context,
            )
            for stock, context in (
                # its dilations are an option of the class that it derives from
                (
                    'deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py',
                    'DepthwiseSeparableASPPHead',
                ),
                # these take several feature maps
                ('upernet/upernet_r50_4xb2-40k_cityscapes-512x1024.py', 'UPerHead'),
                ('ann/ann_r50-d8_4xb2-40k_cityscapes-512x1024.py', 'ANNHead'),
            )
        ),
    ],
)
def test_one_line_turns_a_stock_config_into_ours(stock, change, context, tmp_path):
    path = tmp_path / 'changed.py'
    path.write_text(
        f"_base_ = '{(MMSEG_CONFIGS / stock).as_posix()}'\n"
        "custom_imports = dict(imports=['mmseg_cmdl'], allow_failed_imports=False)\n"
        f'model = dict(decode_head={change})\n'
    )
    cfg = offline(Config.fromfile(path))
    model = tiny_model(cfg)
    head = model.decode_head
    assert type(head).__name__ in change
    assert (head.in_channels, head.channels, head.num_classes) == (2048, 512, 19)
    if context:
        assert type(head.context.head).__name__ == context
    before = head.bank.read().clone()
    log, norms = train_step(model, cfg)
    assert np.isfinite(log['loss'])
    assert all(norm is not None for norm in norms.values())
    assert not torch.equal(before, head.bank.read())


def test_protoseg_weighs_the_classes_of_cityscapes():
    """Weights of the released code; the mean is over all pixels, with ignored ones among them."""
    cfg = load('protoseg_fcn_hr48_4xb2-80k_cityscapes-512x1024').model.decode_head.loss_decode
    weights = torch.tensor(
        [
            0.8373, 0.9180, 0.8660, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023, 0.9539,
            0.9843, 1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507,
        ]
    )  # fmt: skip
    torch.manual_seed(0)
    logits = torch.randn(2, 19, 4, 5, requires_grad=True)
    labels = torch.randint(0, 19, (2, 4, 5))
    labels[0, :2] = 255
    values = MODELS.build(cfg)(logits, labels, ignore_index=255)
    # what mmengine makes of a map of losses
    got, _ = BaseModel.parse_losses(None, dict(loss_ce=values))
    expected = 0
    for b, y, x in (labels != 255).nonzero().tolist():
        k = labels[b, y, x]
        expected = expected - weights[k] * logits[b, :, y, x].log_softmax(0)[k]
    torch.testing.assert_close(got, expected / labels.numel())
    got.backward()
    assert not logits.grad[0, :, :2].any()


@pytest.mark.skipif(not HAS_TIMM, reason='timm can not be imported here')
def test_weights_file_is_loaded(tmp_path):
    """Both ways the README gives to load ImageNet weights from a file."""
    import timm

    name = load(LITE0).model.backbone.model_name
    whole = timm.create_model(name, pretrained=False)
    features = timm.create_model(name, pretrained=False, features_only=True)
    missing = features.load_state_dict(whole.state_dict(), strict=False)
    assert not missing.missing_keys
    torch.save(whole.state_dict(), tmp_path / 'whole.pth')
    torch.save(features.state_dict(), tmp_path / 'features.pth')
    for options in (
        {'model.backbone.pretrained_cfg_overlay.file': str(tmp_path / 'whole.pth')},
        {
            'model.backbone.pretrained': False,
            'model.backbone.checkpoint_path': str(tmp_path / 'features.pth'),
        },
    ):
        cfg = load(LITE0)
        init_default_scope('mmseg')
        cfg.merge_from_dict(options)
        model = MODELS.build(cfg.model)
        model.init_weights()
        state = model.backbone.timm_model.state_dict()
        for key, value in features.state_dict().items():
            assert torch.equal(state[key], value), key
        channels = model.backbone.timm_model.feature_info.channels()
        reduction = model.backbone.timm_model.feature_info.reduction()
        assert (channels, reduction) == ([16, 24, 40, 112, 320], [2, 4, 8, 8, 8])
