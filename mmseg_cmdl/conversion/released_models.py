"""The released models of MCIBI, MCIBI++ and ProtoSeg, and what decides their function.

Source: the configs of MCIBI and MCIBI++ in the sssegmentation toolbox, version 1.7.0, and the code
of ProtoSeg. Here is what has no tensor: a checkpoint has weights
only; a model with another activation or dilation takes them without a word and predicts
differently. So a model is known by its name, and what its network needs is in this table.
"""

from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from mmengine.model import BaseModule
from mmseg.registry import DATASETS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..compat import swaps_channels

RELU = dict(type='ReLU')
# in the heads of the ResNets for LIP; the backbone has ReLU everywhere
LEAKY_RELU = dict(type='LeakyReLU', negative_slope=0.01)

_EVERY_MODEL = {
    'data_preprocessor.mean': [123.675, 116.28, 103.53],
    'data_preprocessor.std': [58.395, 57.12, 57.375],
    'data_preprocessor.bgr_to_rgb': True,
    'decode_head.act_cfg': RELU,
    'decode_head.align_corners': False,
    'eps of batch norm': [1e-5],
}
_EVERY_MEMORY = {
    **_EVERY_MODEL,
    'decode_head.fusion': 'concat',
    'decode_head.hard_aggregate': False,
}
_ASPP = {
    'decode_head.context.type': 'ASPPHead',
    'decode_head.context.act_cfg': RELU,
    'decode_head.context.align_corners': False,
    'decode_head.context.dilations': [1, 12, 24, 36],
}
_PPM = {
    'decode_head.context.type': 'PSPHead',
    'decode_head.context.act_cfg': RELU,
    'decode_head.context.align_corners': False,
    'decode_head.context.pool_scales': [1, 2, 3, 6],
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
    'swinlarge': {
        'backbone.type': 'SwinTransformer',
        'backbone.out_indices': [0, 1, 2, 3],
        'backbone.num_heads': [6, 12, 24, 48],
        'backbone.window_size': 12,
        'eps of layer norm': [1e-5],
        'auxiliary_head.act_cfg': RELU,
    },
}
# names in the released files, and the classes in their order; MMSegmentation has no VSPW
_CLASSES = {
    'ade20k': 'ADE20KDataset',
    'cityscapes': 'CityscapesDataset',
    'lip': 'LIPDataset',
    'cocostuff10k': 'COCOStuff182Dataset',
    'pascalcontext59': 'PascalContextDataset59',
    'voc': 'PascalVOCDataset',
}
_OF_BOTH = ('ade20k', 'cityscapes', 'lip', 'cocostuff10k')  # of MCIBI and MCIBI++
_LEAKY = {
    'decode_head.act_cfg': LEAKY_RELU,
    'decode_head.context.act_cfg': LEAKY_RELU,
    'auxiliary_head.act_cfg': LEAKY_RELU,
}
_ONLY_FOR: Dict[Tuple[str, str], Dict[str, Any]] = {
    ('r50', 'lip'): _LEAKY,
    ('r101', 'lip'): _LEAKY,
    ('hrnetv2w48', 'lip'): {'neck.stride': 2},
    # the only one without an activation between the convs of its stem
    ('hrnetv2w48', 'cityscapes'): {'neck.stride': 2, 'backbone.type': 'LinearStemHRNet'},
    ('vitlarge', 'ade20k'): {'decode_head.context.dilations': [1, 6, 12, 18]},
}

_CONFIGS = {
    'ade20k': '4xb4-160k_ade20k-512x512',
    'cityscapes': '4xb4-96k_cityscapes-trainval-512x1024',
    'lip': '8xb4-140k_lip-473x473',
    'cocostuff10k': '4xb4-62k_coco-stuff10k-182-512x512',
    'pascalcontext59': '4xb4-80k_pascal-context-59-480x480',
    'voc': '4xb4-40k_voc12aug-512x512',
}
_CONFIG_BACKBONES = dict(
    r50='r50-d8', r101='r101-d8', s101='s101-d8', hrnetv2w48='hr48', vitlarge='vit-l'
)


class ReleasedModel(NamedTuple):
    """What is known of a released model besides its tensors.

    Attributes:
        config (str): The shipped config of the same network, or of the nearest one where the data
            set is none of MMSegmentation's.
        dataset (str, optional): Registered data set whose classes, in their order, the model
            predicts; None where MMSegmentation has none (VSPW).
        facts (dict): Settings that change what is predicted and have no tensor in the checkpoint,
            by their key in `model`.
        head (str): The decode head here.
    """

    config: str
    dataset: Optional[str]
    facts: Dict[str, Any]
    head: str = 'MCIBIHead'


def _released(backbone: str, dataset: str) -> ReleasedModel:
    setting = _CONFIGS[dataset]
    if backbone == 'vitlarge':
        setting = setting.replace('4xb4', '8xb2')
    return ReleasedModel(
        f'mcibi_deeplabv3_{_CONFIG_BACKBONES[backbone]}_{setting}',
        _CLASSES[dataset],
        {
            **_EVERY_MEMORY,
            **_ASPP,
            **_BACKBONES[backbone],
            **_ONLY_FOR.get((backbone, dataset), {}),
        },
    )


RELEASED = {
    f'mcibi_deeplabv3_{backbone}_{dataset}': _released(backbone, dataset)
    for dataset in _OF_BOTH
    for backbone in ('r50', 'r101', 's101', 'hrnetv2w48', 'vitlarge')
    if backbone != 'vitlarge' or dataset in ('ade20k', 'cocostuff10k')
}

# MCIBI++: by the name of the released file without 'mcibiplusplus_', the config without 'mcibipp_'.
_SWIN = 'upernet_swin-l_8xb2-160k_ade20k-640x640'
_CONFIGS_R50 = {**_CONFIGS, 'cityscapes': '4xb2-80k_cityscapes-512x1024'}
_PLUS_PLUS = {
    **{
        f'{context}resnet50os8_{dataset}': f'{network}_r50-d8_{_CONFIGS_R50[dataset]}'
        for context, network in (
            ('', 'fcn'),
            ('ppm_', 'pspnet'),
            ('upernet_', 'upernet'),
            ('aspp_', 'deeplabv3'),
        )
        for dataset in _OF_BOTH
    },
    **{
        f'aspp_{backbone}_cityscapes': f'deeplabv3_{name}_{_CONFIGS["cityscapes"]}'
        for backbone, name in (
            ('resnet101os8', 'r101-d8'),
            ('resnest101os8', 's101-d8'),
            ('hrnetv2w48', 'hr48'),
        )
    },
    'aspp_hrnetv2w48_lip': f'deeplabv3_hr48_{_CONFIGS["lip"]}',
    **{
        f'upernet_{backbone}os8_{dataset}': f'upernet_{name}_{_CONFIGS[dataset]}'
        for backbone, name in (
            ('resnet50', 'r50-d8'),
            ('resnet101', 'r101-d8'),
            ('resnest101', 's101-d8'),
        )
        for dataset in ('ade20k', 'cocostuff10k', 'lip', 'pascalcontext59', 'voc')
        if (backbone, dataset) not in (('resnet50', 'pascalcontext59'), ('resnest101', 'voc'))
    },
    'upernet_swinlarge_ade20k': _SWIN,
    # these have no config of their own: the network's, for another data set
    'upernet_swinlarge_cocostuff10k': _SWIN,
    'upernet_swinlarge_lip': _SWIN,
    'upernet_swinlarge_pascalcontext59': _SWIN,
    'upernet_swinlarge_vspw': _SWIN,
    'upernet_resnet50os8_vspw': f'upernet_r50-d8_{_CONFIGS["ade20k"]}',
    'upernet_resnet101os8_vspw': f'upernet_r101-d8_{_CONFIGS["ade20k"]}',
}
_UPERNET_WITH_PPM = {
    *(f'resnet50os8_{dataset}' for dataset in _OF_BOTH),
    *('resnet101os8_lip', 'resnet101os8_voc', 'resnest101os8_lip', 'resnest101os8_cocostuff10k'),
    *('swinlarge_lip', 'swinlarge_vspw'),
}


def _plus_plus(name: str, config: str) -> ReleasedModel:
    context, _, rest = name.rpartition('_')[0].rpartition('_')
    dataset = name.rpartition('_')[2]
    backbone = {'resnet50os8': 'r50', 'resnet101os8': 'r101', 'resnest101os8': 's101'}.get(
        rest, rest
    )
    facts = {**_EVERY_MEMORY, **_BACKBONES[backbone]}
    if context:
        facts['decode_head.weights_from'] = 'context'
        pooled = context == 'ppm' or f'{rest}_{dataset}' in _UPERNET_WITH_PPM
        facts.update(_PPM if context != 'aspp' and pooled else _ASPP)
    if name == 'ppm_resnet50os8_ade20k':
        facts['decode_head.weights_from'] = 'coarse'
    if name == 'aspp_hrnetv2w48_cityscapes':
        facts['backbone.type'] = 'LinearStemHRNet'
    return ReleasedModel(f'mcibipp_{config}', _CLASSES.get(dataset), facts, 'MCIBIPlusPlusHead')


RELEASED.update(
    {f'mcibiplusplus_{name}': _plus_plus(name, config) for name, config in _PLUS_PLUS.items()}
)

# ProtoSeg's: images stay BGR and are normalised with the numbers of RGB, as its code does
RELEASED['hrnet_w48_proto_lr1x_hrnet_proto_80k_latest'] = ReleasedModel(
    'protoseg_fcn_hr48_4xb2-80k_cityscapes-512x1024',
    'CityscapesDataset',
    {
        **_EVERY_MODEL,
        'data_preprocessor.bgr_to_rgb': False,
        'backbone.type': 'CornerAlignedHRNet',
        'decode_head.align_corners': True,
        'decode_head.norm_axis': 'released',
        'eps of layer norm': [1e-5],
    },
    'ProtoSegHead',
)


def _activation(cfg: dict) -> dict:
    """A comparable form: what doesn't change the function is left out, a default filled in."""
    cfg = {key: value for key, value in (cfg or {}).items() if key != 'inplace'}
    if cfg.get('type') == 'LeakyReLU':
        cfg.setdefault('negative_slope', 0.01)
    return cfg


def _epsilons(model: nn.Module, kind: Any) -> List[float]:
    return sorted({module.eps for module in model.modules() if isinstance(module, kind)})


def read_fact(model: BaseModule, key: str) -> Any:
    """The value of a built model for a key of `facts`, whether or not its config sets it.

    Args:
        model (BaseModule): A segmentor; its parameters may be without memory.
        key (str): Key in the table.

    Raises:
        AttributeError: The model has no such part.
    """
    if key.startswith('eps of '):
        return _epsilons(model, _BatchNorm if key == 'eps of batch norm' else nn.LayerNorm)
    if key == 'data_preprocessor.bgr_to_rgb':
        return swaps_channels(model.data_preprocessor)
    if key == 'backbone.num_heads' and hasattr(model.backbone, 'layers'):
        return model.backbone.layers[0].attn.num_heads
    if key in ('backbone.num_heads', 'backbone.window_size'):  # of a Swin transformer
        windows = [stage.blocks[0].attn for stage in model.backbone.stages]
        if key == 'backbone.window_size':
            return windows[0].window_size
        return [window.w_msa.num_heads for window in windows]
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
    """Settings of a model that differ from those of the released one, by key.

    The value is the model's; None for a part that the model doesn't have.
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
