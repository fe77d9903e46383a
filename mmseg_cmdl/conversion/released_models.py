"""The released models of MCIBI, and what decides their function and has no tensor.

Source: the configs of MCIBI in the sssegmentation toolbox, version 1.7.0. A checkpoint has weights
only; a model with another activation or dilation takes them without a word and predicts
differently. So a model is known by its name, and what its network needs is in this table.
"""

from typing import Any, Dict, List, NamedTuple, Tuple

from mmengine.model import BaseModule
from mmseg.registry import DATASETS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

RELU = dict(type='ReLU')
# in the heads of the ResNets for LIP; the backbone has ReLU everywhere
LEAKY_RELU = dict(type='LeakyReLU', negative_slope=0.01)

_EVERY_MODEL = {
    'data_preprocessor.mean': [123.675, 116.28, 103.53],
    'data_preprocessor.std': [58.395, 57.12, 57.375],
    'data_preprocessor.bgr_to_rgb': True,
    'decode_head.act_cfg': RELU,
    'decode_head.align_corners': False,
    'decode_head.fusion': 'concat',
    'decode_head.hard_aggregate': False,
    'decode_head.context.type': 'ASPPHead',
    'decode_head.context.act_cfg': RELU,
    'decode_head.context.align_corners': False,
    'decode_head.context.dilations': [1, 12, 24, 36],
    'eps of batch norm': [1e-5],
}
_RESNET = {
    'backbone.strides': [1, 2, 1, 1],
    'backbone.dilations': [1, 1, 2, 4],
    'backbone.contract_dilation': True,
    'backbone.style': 'pytorch',
    'auxiliary_head.act_cfg': RELU,
}
_BACKBONES = {
    'r50': {'backbone.type': 'ResNetV1c', **_RESNET},
    'r101': {'backbone.type': 'ResNetV1c', **_RESNET},
    's101': {'backbone.type': 'ResNeSt', 'backbone.avg_down_stride': True, **_RESNET},
    'hrnetv2w48': {
        'backbone.type': 'HRNet',
        'neck.type': 'ResizeConcatNeck',
        'neck.stride': 1,
        'neck.align_corners': False,
        'neck.act_cfg': RELU,
    },
    'vitlarge': {
        'backbone.type': 'VisionTransformer',
        'backbone.img_size': [512, 512],
        'backbone.num_heads': 16,
        'backbone.out_indices': [9, 14, 19, 23],
        'backbone.with_cls_token': True,
        'backbone.interpolate_mode': 'bilinear',
        'eps of layer norm': [1e-6],
    },
}
# names in the released files, and the classes in their order
_CLASSES = {
    'ade20k': 'ADE20KDataset',
    'cityscapes': 'CityscapesDataset',
    'lip': 'LIPDataset',
    'cocostuff10k': 'COCOStuff182Dataset',
}
_ONLY_FOR: Dict[Tuple[str, str], Dict[str, Any]] = {
    ('r50', 'lip'): {
        'decode_head.act_cfg': LEAKY_RELU,
        'decode_head.context.act_cfg': LEAKY_RELU,
        'auxiliary_head.act_cfg': LEAKY_RELU,
    },
    ('hrnetv2w48', 'lip'): {'neck.stride': 2},
    # the only one without an activation between the convs of its stem
    ('hrnetv2w48', 'cityscapes'): {'neck.stride': 2, 'backbone.type': 'LinearStemHRNet'},
    ('vitlarge', 'ade20k'): {'decode_head.context.dilations': [1, 6, 12, 18]},
}
_ONLY_FOR['r101', 'lip'] = _ONLY_FOR['r50', 'lip']

_CONFIGS = {
    'ade20k': '4xb4-160k_ade20k-512x512',
    'cityscapes': '4xb4-96k_cityscapes-trainval-512x1024',
    'lip': '8xb4-140k_lip-473x473',
    'cocostuff10k': '4xb4-62k_coco-stuff10k-182-512x512',
}
_CONFIG_BACKBONES = dict(
    r50='r50-d8', r101='r101-d8', s101='s101-d8', hrnetv2w48='hr48', vitlarge='vit-l'
)


class ReleasedModel(NamedTuple):
    """What is known of a released model besides its tensors.

    Attributes:
        config (str): The shipped config of the same network.
        dataset (str): Registered data set whose classes, in their order, the model predicts.
        facts (dict): What decides the function and has no tensor, by its key in `model`.
    """

    config: str
    dataset: str
    facts: Dict[str, Any]


def _released(backbone: str, dataset: str) -> ReleasedModel:
    setting = _CONFIGS[dataset]
    if backbone == 'vitlarge':
        setting = setting.replace('4xb4', '8xb2')
    return ReleasedModel(
        f'mcibi_deeplabv3_{_CONFIG_BACKBONES[backbone]}_{setting}',
        _CLASSES[dataset],
        {**_EVERY_MODEL, **_BACKBONES[backbone], **_ONLY_FOR.get((backbone, dataset), {})},
    )


RELEASED = {
    f'mcibi_deeplabv3_{backbone}_{dataset}': _released(backbone, dataset)
    for dataset in _CLASSES
    for backbone in _BACKBONES
    if backbone != 'vitlarge' or dataset in ('ade20k', 'cocostuff10k')
}


def _activation(cfg: dict) -> dict:
    """A comparable form: what doesn't change the function is left out, a default filled in."""
    cfg = {key: value for key, value in (cfg or {}).items() if key != 'inplace'}
    if cfg.get('type') == 'LeakyReLU':
        cfg.setdefault('negative_slope', 0.01)
    return cfg


def _epsilons(model: nn.Module, kind: Any) -> List[float]:
    return sorted({module.eps for module in model.modules() if isinstance(module, kind)})


def read_fact(model: BaseModule, key: str) -> Any:
    """What a built model has for a fact of the table, whether its config says it or not.

    Args:
        model (BaseModule): A segmentor; its parameters may be without memory.
        key (str): Key in the table.

    Raises:
        AttributeError: The model has no such part.
    """
    if key.startswith('eps of '):
        return _epsilons(model, _BatchNorm if key == 'eps of batch norm' else nn.LayerNorm)
    if key == 'data_preprocessor.bgr_to_rgb':
        return model.data_preprocessor.channel_conversion
    if key == 'backbone.num_heads':
        return model.backbone.layers[0].attn.num_heads
    *parents, name = key.replace('context.', 'context.head.').split('.')
    part = model
    for parent in parents:
        part = getattr(part, parent)
    if name == 'type':
        if part is None:
            raise AttributeError(key)
        return type(part).__name__
    value = getattr(part, name)
    if key.startswith('data_preprocessor.'):
        return [round(number, 4) for number in value.flatten().tolist()]
    if name == 'act_cfg':
        return _activation(value)
    return list(value) if isinstance(value, (list, tuple)) else value


def differences(model: BaseModule, released: ReleasedModel) -> Dict[str, Any]:
    """Facts in which a model isn't the released one, by key: what the model has.

    A part that the model hasn't got is None.
    """
    found = {}
    for key, expected in released.facts.items():
        try:
            value = read_fact(model, key)
        except (AttributeError, TypeError, IndexError):
            value = None
        if value != expected:
            found[key] = value
    return found


def dataset_meta(dataset: str) -> Dict[str, Any]:
    """Names and colours of the classes, as MMSegmentation's checkpoints have them."""
    meta = DATASETS.get(dataset).METAINFO
    return dict(classes=list(meta['classes']), palette=[list(row) for row in meta['palette']])
