"""Every form of network among MMSegmentation's configs, small, under each method by its one change.

`python -m tests.zoo` prints the table of docs/decoders.md, which tests/test_zoo.py compares.
"""

import copy
from collections import Counter
from functools import cache
from pathlib import Path

import mmseg_cmdl  # noqa: F401  before anything of mmseg

import mmseg  # isort: skip
import torch  # isort: skip
from mmengine.config import Config, ConfigDict  # isort: skip
from mmengine.model import BaseModule, revert_sync_batchnorm  # isort: skip
from mmengine.registry import init_default_scope  # isort: skip
from mmengine.structures import PixelData  # isort: skip
from mmseg.registry import MODELS  # isort: skip
from mmseg.structures import SegDataSample  # isort: skip

CONFIGS = Path(mmseg.__file__).parent / '.mim' / 'configs'
METHODS = ('MDRL', 'MCIBI', 'DGCW', 'CAR')
K = 4
# They can't be built here, whatever the head.
NOT_HERE = {
    'PSAHead': 'its PSAMask is an operation that mmcv has to be compiled with; all four methods '
    'are tested with a plain form of it, see above',
    'MaskFormerHead': 'needs mmdet',
    'Mask2FormerHead': 'needs mmdet',
    'VPDDepthHead': 'predicts depth, not classes',
    None: 'has no head',
}


@MODELS.register_module()
class ZooMaps(BaseModule):
    """Four maps at stride 4 to 32, for backbones of MMPretrain."""

    def __init__(self, channels):
        super().__init__()
        inputs = (3, *channels[:-1])
        self.convs = torch.nn.ModuleList(
            torch.nn.Conv2d(i, o, 3, stride=4 if i == 3 else 2, padding=1)
            for i, o in zip(inputs, channels)
        )

    def forward(self, x):
        maps = []
        for conv in self.convs:
            x = conv(x)
            maps.append(x)
        return maps


def heads_of(model):
    """The decode heads of a config, several of a cascade."""
    heads = model.get('decode_head')
    return heads if isinstance(heads, (list, tuple)) else [heads or {}]


def kind(model):
    """Name of the last decode head."""
    return heads_of(model)[-1].get('type')


def form(model):
    """What tells one network from another when sizes don't: classes, maps taken, necks."""
    backbone = (model.get('backbone') or model.get('image_encoder'))['type']
    if backbone.startswith(('ResNe', 'ResNeX')):
        backbone = 'ResNet'
    last = heads_of(model)[-1]
    return (
        model['type'],
        backbone,
        str((model.get('neck') or {}).get('type')),
        tuple(head.get('type') for head in heads_of(model)),
        str(last.get('in_index')),
        str(last.get('input_transform')),
    )


@cache
def forms():
    """Config of a network of each form, and how many of MMSegmentation's files have it."""
    found, counts = {}, Counter()
    for path in sorted(CONFIGS.glob('*/*.py')):
        model = Config.fromfile(path, import_custom_modules=False).get('model')
        if model is not None:
            model = model.to_dict()
            counts[form(model)] += 1
            found.setdefault(form(model), model)
    return {key: (model, counts[key]) for key, model in found.items()}


def _plain_norms(cfg):
    """Batch norm for what needs several GPUs, or many channels."""
    if isinstance(cfg, dict):
        if cfg.get('type') in ('SyncBN', 'GN'):
            return dict(type='BN')
        return {key: _plain_norms(value) for key, value in cfg.items()}
    return type(cfg)(map(_plain_norms, cfg)) if isinstance(cfg, (list, tuple)) else cfg


def _small_backbone(cfg):
    """The backbone, narrow where its class lets it be, and what its channels are divided by."""
    kind, by = cfg['type'], 1
    width = cfg.get('embed_dims')
    if kind.startswith(('ResNe', 'ResNeX')):
        by = 8 if cfg['depth'] in (18, 34) else 32
        kept = ('num_stages', 'out_indices', 'dilations', 'strides', 'contract_dilation')
        cfg = {key: cfg[key] for key in kept if key in cfg}
        cfg.update(type='ResNetV1c', depth=18, base_channels=8, stem_channels=8)
    elif kind == 'HRNet':
        by = cfg['extra']['stage2']['num_channels'][0] / 4
        for stage in cfg['extra'].values():
            stage.update(num_modules=1, num_blocks=[1] * stage['num_branches'])
            if stage['num_branches'] > 1:
                stage['num_channels'] = [int(c / by) for c in stage['num_channels']]
    elif kind == 'UNet':
        by = cfg['base_channels'] / 4
        cfg['base_channels'] = 4
    elif kind == 'ICNet':
        cfg['backbone_cfg']['depth'] = 18
        cfg['layer_channels'] = (128, 512)
    elif kind == 'PIDNet':
        by = cfg['channels'] / 8
        cfg.update(channels=8, ppm_channels=8)
    elif kind in ('VisionTransformer', 'BEiT', 'MAE'):
        by = width / 16
        out = cfg.get('out_indices', -1)
        cfg.update(embed_dims=16, num_heads=2, num_layers=4)
        cfg['out_indices'] = (0, 1, 2, 3) if isinstance(out, (list, tuple)) else 3
        cfg['img_size'] = (64, 64)
    elif kind == 'SwinTransformer':
        by = width / 8
        cfg.update(embed_dims=8, depths=[1] * 4, num_heads=[1] * 4)
    elif kind == 'MixVisionTransformer':
        by = width / 4
        cfg.update(embed_dims=4, num_layers=[1] * 4)
    elif kind in ('MSCAN', 'PCPVT', 'SVT'):
        by = 8 if width[0] == 64 or kind == 'MSCAN' else 12
        cfg.update(embed_dims=[w // by for w in width], depths=[1] * 4)
        if kind != 'MSCAN':
            cfg.update(num_heads=[1] * 4)
    elif kind.startswith('mmpretrain.'):
        cfg = None
    return cfg, by


def _divided(channels, by):
    if isinstance(channels, (list, tuple)):
        return type(channels)(_divided(c, by) for c in channels)
    return max(1, int(channels / by))


# Widths inside a head that don't hang together with the maps it takes.
_HEAD_WIDTHS = dict(
    channels=8, project_channels=4, pam_channels=4, ema_channels=8, num_bases=4, isa_channels=4,
    down_factor=(2, 2), ham_channels=8, ocr_channels=4, c1_channels=4, num_codes=4, mla_channels=4,
    embed_dims=16, num_heads=2, num_layers=1, dims=8, post_process_channels=[4, 4, 8, 8],
)  # fmt: skip


def _small_head(cfg, by):
    # the head that learns borders has two
    cfg = dict(cfg, num_classes=2 if cfg['type'] == 'STDCHead' else K)
    for key in ('in_channels', 'c1_in_channels'):
        if key in cfg:
            cfg[key] = _divided(cfg[key], by)
    cfg.update({key: value for key, value in _HEAD_WIDTHS.items() if key in cfg})
    if cfg.get('num_convs') == 0:  # what is classified is the map itself
        cfg['channels'] = cfg['in_channels']
    if cfg['type'] == 'SETRMLAHead':  # the one follows from the other
        cfg.update(channels=512, mla_channels=128)
    if 'ham_kwargs' in cfg:
        cfg['ham_kwargs'] = dict(MD_R=4)
    losses = cfg.get('loss_decode') or []
    for loss in losses if isinstance(losses, list) else [losses]:
        loss.pop('class_weight', None)
    return cfg


def small(model):
    """The network with few channels and layers, without weights."""
    model = _plain_norms(copy.deepcopy(model))
    for key in ('pretrained', 'data_preprocessor'):
        model.pop(key, None)
    for key in ('train_cfg', 'test_cfg'):
        model[key] = ConfigDict(model.get(key) or {})
    model['test_cfg'].update(mode='whole')
    backbone = model.get('backbone')
    if backbone is None:  # a pair of encoders, for image and text
        return model
    backbone.pop('init_cfg', None)
    backbone.get('backbone_cfg', {}).pop('init_cfg', None)
    model['backbone'], by = _small_backbone(backbone)
    neck = model.get('neck')
    if model['backbone'] is None:
        channels = (neck or heads_of(model)[-1])['in_channels']
        model['backbone'] = dict(type='ZooMaps', channels=channels)
    if neck:
        widths = ('in_channels', 'out_channels', 'mid_channels', 'embed_dim')
        neck.update({key: _divided(neck[key], by) for key in widths if key in neck})
    for key in ('decode_head', 'auxiliary_head'):
        value = model.get(key)
        if isinstance(value, (list, tuple)):
            model[key] = [_small_head(head, by) for head in value]
        elif value and value['type'] == 'IterativeDecodeHead':
            inner = value['kernel_generate_head']
            value['kernel_generate_head'] = dict(_small_head(inner, by), channels=inner['channels'])
            for update in value['kernel_update_head']:
                update['num_classes'] = K
        elif value:
            model[key] = _small_head(value, by)
    return model


def changed(model, method):
    """The network under a method, by the change that docs/decoders.md says."""
    model = copy.deepcopy(model)
    if method == 'CAR':
        cascade = model['type'] == 'CascadeEncoderDecoder'
        model['type'] = 'CARCascadeEncoderDecoder' if cascade else 'CAREncoderDecoder'
        return model
    heads = heads_of(model)
    old = heads[-1]
    if old['type'] == 'PointHead':  # it refines the logits of the head before
        old = heads[0]
    elif old['type'] == 'IterativeDecodeHead':
        old = old['kernel_generate_head']
    name = old['type']
    old['type'] = f'{method}Head'
    if name != 'FCNHead':
        old['context'] = dict(type=name)
    if method == 'MDRL':
        old['bank'] = dict(type='DistributionBank', num_distributions=2)
    return model


def samples(size, batch=2):
    labels = torch.arange(K).repeat_interleave(size // K).expand(batch, size, size).clone()
    labels[:, :2] = 255
    return [
        SegDataSample(
            gt_sem_seg=PixelData(data=label[None]),
            gt_edge_map=PixelData(data=(label[None] == 1).long()),  # PIDNet's
            metainfo=dict(img_shape=(size, size), ori_shape=(size, size), pad_shape=(size, size)),
        )
        for label in labels
    ]


def stride(model):
    """Builds the network, trains a step, predicts; by how much its logits are coarser than images.

    Raises:
        Exception: What the network itself raises.
    """
    init_default_scope('mmseg')
    torch.manual_seed(0)
    # its last map is pooled in windows of 49 pixels
    size = 400 if 'LRASPPHead' in str(model) else 64
    model = revert_sync_batchnorm(MODELS.build(copy.deepcopy(model))).train()
    images = torch.randn(2, 3, size, size)
    losses, _ = model.parse_losses(model.loss(images, samples(size)))
    losses.backward()
    assert losses.isfinite()
    for head in model.modules():
        if hasattr(head, 'bank'):
            assert int(head.bank.num_updates) == 1
    heads = (
        list(model.decode_head) if hasattr(model.decode_head, '__len__') else [model.decode_head]
    )
    classifiers = [
        module
        for name, module in model.decode_head.named_modules()
        if name.endswith('conv_seg') and 'context.' not in name
    ]
    sizes = []
    for conv in classifiers[-1:]:
        conv.register_forward_hook(lambda _, inputs, output: sizes.append(output.shape[-1]))
    model.eval()
    with torch.no_grad():
        for result in model.predict(images, samples(size)):
            assert result.seg_logits.data.shape == (K, size, size)
        if not sizes:  # it has no such conv
            sizes.append(heads[-1](model.extract_feat(images)).shape[-1])
    return round(size / max(sizes))


def outcome(model, method=None):
    """Stride of the logits, or in a sentence why there are none."""
    model = small(model)
    try:
        return stride(model if method is None else changed(model, method))
    except Exception as error:
        return f'{type(error).__name__}: {error}'


# What a head's row says besides strides: what to write in its place, or why it can't be.
NOTES = {
    'FCNHead': 'no `context`',
    'OCRHead': "in the cascade's last head, with `context=dict(type='OCRHead')`; DGCW without",
    'PointHead': "in the first head of the cascade, with `context=dict(type='FPNHead')`",
    'IterativeDecodeHead': 'K-Net: in `kernel_generate_head`; with the losses of K-Net no memory '
    'learns there, and CAR finds no `conv_seg`',
    'PIDHead': 'its losses and inputs in training are its own',
    'DDRHead': 'its losses and inputs in training are its own',
    'SegmenterMaskTransformerHead': 'it has no `conv_seg`',
    'SideAdapterCLIPHead': 'SAN: it classifies masks with CLIP, and CAR is for another segmentor',
    **NOT_HERE,
}
HEADER = [
    '| head | configs | stride of the logits | MDRL, MCIBI | DGCW | CAR | where, or why not |',
    '| --- | --- | --- | --- | --- | --- | --- |',
]


def outcomes():
    """By form: stride, or why there is none, of the plain network (None) and of each method."""
    found = {}
    for key, (model, _) in forms().items():
        # CLIP itself is too large to train here; what is refused is refused before that
        methods = METHODS if kind(model) == 'SideAdapterCLIPHead' else (None, *METHODS)
        untried = kind(model) in NOT_HERE
        found[key] = {} if untried else {m: outcome(model, m) for m in methods}
    return found


def table(found):
    """Rows of docs/decoders.md, one for each head.

    Args:
        found (dict): As from :func:`outcomes`.
    """
    rows = {}
    for key, (model, count) in forms().items():
        row = rows.setdefault(
            kind(model), dict(count=0, before=set(), **{m: set() for m in METHODS})
        )
        row['count'] += count
        for method, value in found[key].items():
            if method is None:
                row['before'].add(value)
            else:
                row[method].add('same' if value == found[key].get(None) else _cell(value))
    lines = []
    for head, row in sorted(rows.items(), key=lambda item: str(item[0])):
        cells = [', '.join(map(str, sorted(row['before']))) or '-']
        for methods in (('MDRL', 'MCIBI'), ('DGCW',), ('CAR',)):
            values = set().union(*(row[m] for m in methods))
            cells.append(', '.join(sorted(values)) or '-')
        note = NOTES.get(head, f"`context=dict(type='{head}')`")
        lines.append(f'| {head} | {row["count"]} | {" | ".join(cells)} | {note} |')
    return [*HEADER, *lines]


def _cell(value):
    return str(value) if isinstance(value, int) else 'refused'


def summary(found):
    """How many configs there are, and with how many each method works, in a sentence."""
    total = sum(count for _, count in forms().values())
    works = {
        m: sum(count for key, (_, count) in forms().items() if isinstance(found[key].get(m), int))
        for m in (None, *METHODS)
    }
    numbers = ', '.join(f'{m} on {works[m]}' for m in METHODS)
    return (
        f'Of {total} configs of {len(forms())} forms, {works[None]} could be tried here: {numbers}.'
    )


if __name__ == '__main__':
    results = outcomes()
    print('\n'.join([summary(results), '', *table(results)]))
