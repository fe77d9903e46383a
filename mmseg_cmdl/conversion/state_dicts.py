"""Names and shapes of a released state dict, and where its tensors go in a model of this package.

Source: the networks of MCIBI and MCIBI++ in the sssegmentation toolbox, of CMDL in its repository,
which is a fork of it, and of ProtoSeg in its own. Activation, dilation and the like have no tensor:
see `released_models.py`.
"""

import re
from pathlib import Path
from typing import Dict, List, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..models.memory.gaussian_bank import class_noise

HEAD = 'decode_head'
CONTEXT = f'{HEAD}.context.head'
MEMORY = 'memory_module.memory'
PROTOTYPES = 'prototypes'

State = Dict[str, Tensor]

# A conv and its norm are numbers in a Sequential there, and named in a ConvModule here.
_BLOCK = r'(?P<part>[01])\.(?P<leaf>\w+)'
_PROJECTION = rf'(?P<rest>\w+_project(\.\d+)?)\.{_BLOCK}'
_WITHIN = r'context_within_image_module'
_COMMON = [
    (r'backbone_net\.(?P<rest>.+)', 'backbone.{rest}'),
    # HRNet for Cityscapes and LIP
    (rf'downsample_backbone\.{_BLOCK}', 'neck.downsample.{block}'),
    # ViT: a norm for each map; the last is the head's, the others the auxiliary decoders'
    (r'norm_layers\.3\.(?P<leaf>\w+)', 'backbone.ln1.{leaf}'),
    (r'norm_layers\.(?P<rest>[012])\.(?P<leaf>\w+)', 'auxiliary_head.{rest}.norm.{leaf}'),
    (rf'bottleneck\.{_BLOCK}', HEAD + '.bottleneck.{block}'),
    (rf'decoder_stage1\.{_BLOCK}', HEAD + '.coarse_classifier.0.{block}'),
    (r'decoder_stage1\.4\.(?P<leaf>\w+)', HEAD + '.coarse_classifier.2.{leaf}'),
    (rf'decoder_stage2\.{_BLOCK}', HEAD + '.final_conv.{block}'),
    (r'decoder_stage2\.4\.(?P<leaf>\w+)', HEAD + '.conv_seg.{leaf}'),
    (
        rf'memory_module\.self_attention_ms\.{_PROJECTION}',
        HEAD + '.context_relation.{rest}.{block}',
    ),
    (rf'memory_module\.bottleneck\.{_BLOCK}', HEAD + '.fuse_pixels.{block}'),
    (rf'memory_module\.bottleneck_ms\.{_BLOCK}', HEAD + '.fuse_context.{block}'),
    # ASPP
    (
        rf'{_WITHIN}\.parallel_branches\.(?P<rest>\d+)\.{_BLOCK}',
        CONTEXT + '.aspp_modules.{rest}.{block}',
    ),
    (
        rf'{_WITHIN}\.global_branch\.(?P<after_pool>[12])\.(?P<leaf>\w+)',
        CONTEXT + '.image_pool.1.{block}',
    ),
    # pyramid pooling
    (
        rf'{_WITHIN}\.branches\.(?P<rest>\d+)\.(?P<after_pool>[12])\.(?P<leaf>\w+)',
        CONTEXT + '.psp_modules.{rest}.1.{block}',
    ),
    (rf'{_WITHIN}\.bottleneck\.{_BLOCK}', CONTEXT + '.bottleneck.{block}'),
    # criss-cross attention
    (rf'{_WITHIN}\.conv_before_cca\.{_BLOCK}', CONTEXT + '.convs.0.{block}'),
    (rf'{_WITHIN}\.conv_after_cca\.{_BLOCK}', CONTEXT + '.convs.1.{block}'),
    (rf'{_WITHIN}\.cca\.(?P<rest>.+)', CONTEXT + '.cca.{rest}'),
    # one auxiliary decoder, or several that upsample between their two convs
    (rf'auxiliary_decoder\.{_BLOCK}', 'auxiliary_head.convs.0.{block}'),
    (r'auxiliary_decoder\.4\.(?P<leaf>\w+)', 'auxiliary_head.conv_seg.{leaf}'),
    (
        rf'auxiliary_decoder\.(?P<rest>\d)\.{_BLOCK}',
        'auxiliary_head.{rest}.up_convs.0.0.{block}',
    ),
    (
        r'auxiliary_decoder\.(?P<rest>\d)\.(?P<second>[45])\.(?P<leaf>\w+)',
        'auxiliary_head.{rest}.up_convs.1.0.{block}',
    ),
    (
        r'auxiliary_decoder\.(?P<rest>\d)\.9\.(?P<leaf>\w+)',
        'auxiliary_head.{rest}.conv_seg.{leaf}',
    ),
]
# by the head that the model of the config has
_PLACES = {
    'MCIBIHead': [
        (rf'memory_module\.self_attention\.{_PROJECTION}', HEAD + '.relation.{rest}.{block}'),
        *_COMMON,
    ],
    'MDRLHead': [
        (rf'memory_module\.attention\.{_PROJECTION}', HEAD + '.relation.{rest}.{block}'),
        (rf'memory_module\.fuse_memory_conv\.{_BLOCK}', HEAD + '.fuse_memory.{block}'),
        (rf'proj_head\.proj\.{_BLOCK}', HEAD + '.projection.convs.0.{block}'),
        (r'proj_head\.proj\.3\.(?P<leaf>\w+)', HEAD + '.projection.convs.1.{leaf}'),
        (r'feat_norm\.(?P<leaf>\w+)', HEAD + '.projection.norm.{leaf}'),
        # of the loss that is formed at label size
        (r'mask_norm\.(?P<leaf>\w+)', HEAD + '.consistency.losses.0.norm.{leaf}'),
        *_COMMON,
    ],
    'MCIBIPlusPlusHead': [
        (rf'memory_module\.self_attention\.{_PROJECTION}', HEAD + '.relation.{rest}.{block}'),
        (rf'self_attention\.{_PROJECTION}', HEAD + '.context_relation.{rest}.{block}'),
        (rf'memory_module\.downsample_before_sa\.{_BLOCK}', HEAD + '.downsample.{block}'),
        (
            rf'(?P<rest>(lateral|fpn)_convs\.\d+)\.{_BLOCK}',
            HEAD + '.pyramid.{rest}.{block}',
        ),
        *(
            (rf'decoder_{decoder}\.{layer}\.(?P<leaf>\w+)', f'{HEAD}.{place}.{{leaf}}')
            for decoder, conv, classifier in (
                ('pr', 'coarse_classifier.0', 'coarse_classifier.2'),
                ('cwi', 'context_classifier.0', 'context_classifier.2'),
                ('cls', 'final_conv', 'conv_seg'),
            )
            for layer, place in (
                ('conv1', f'{conv}.conv'),
                ('bn1', f'{conv}.bn'),
                ('conv2', classifier),
            )
        ),
        *_COMMON,
    ],
    'ProtoSegHead': [
        (r'backbone\.(?P<rest>.+)', 'backbone.{rest}'),
        (r'cls_head\.0\.(?P<leaf>\w+)', HEAD + '.bottleneck.conv.{leaf}'),
        # the norm and its activation are a Sequential of their own there
        (r'cls_head\.1\.(0\.)?(?P<leaf>\w+)', HEAD + '.bottleneck.bn.{leaf}'),
        (r'proj_head\.proj\.0\.(?P<leaf>\w+)', HEAD + '.conv_seg.{leaf}'),
        (r'proj_head\.proj\.2\.(?P<leaf>\w+)', HEAD + '.embedding_conv.{leaf}'),
        (r'feat_norm\.(?P<leaf>\w+)', HEAD + '.embedding_norm.{leaf}'),
        (r'mask_norm\.(?P<leaf>\w+)', HEAD + '.score_norm.{leaf}'),
    ],
}
_METHODS = dict(
    MCIBIHead='MCIBI', MCIBIPlusPlusHead='MCIBI++', MDRLHead='CMDL', ProtoSegHead='ProtoSeg'
)
# ProtoSeg's projection under its second name, the same tensors
_SECOND_NAMES = re.compile(r'proj_head\.mlp2\.\d\.\w+')


class ConversionError(InputError):
    """A checkpoint that doesn't fit; the message names the first key that doesn't."""


def read_state(path: Union[str, Path]) -> State:
    """The state dict in a checkpoint file.

    Raises:
        ConversionError: There is none.
    """
    if not Path(path).is_file():
        raise ConversionError(f'there is no file {path}')
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # whatever unpickling comes to
        raise ConversionError(
            f'{path} is no checkpoint that can be read without running code in '
            f'it ({type(error).__name__})'
        ) from error
    for key in ('model', 'state_dict'):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(map(torch.is_tensor, content.values())):
        raise ConversionError(
            f'{path} holds no state dict, neither by itself nor as "model" or "state_dict"'
        )
    return {key.removeprefix('module.'): value for key, value in content.items()}


def _place(key: str, places: List[Tuple[str, str]]) -> Optional[str]:
    """Name here of a released parameter; None if it has none."""
    for pattern, target in places:
        found = re.fullmatch(pattern, key)
        if found:
            groups = found.groupdict()
            part = int(groups.get('part') or 0)
            if groups.get('after_pool'):
                part = int(groups['after_pool']) - 1
            if groups.get('second'):
                part = int(groups['second']) - 4
            return target.format(**groups, block=f'{("conv", "bn")[part]}.{groups.get("leaf")}')
    return None


def convert_state(released: State, head: str = 'MCIBIHead') -> State:
    """Released state dict to ours.

    Args:
        released (dict[str, Tensor]): Under the released names.
        head (str): 'MCIBIHead' for MCIBI, 'MCIBIPlusPlusHead' for MCIBI++, 'MDRLHead' for CMDL,
            'ProtoSegHead' for ProtoSeg. Defaults to 'MCIBIHead'.

    Returns:
        dict[str, Tensor]: Under the names of a segmentor with that head.

    Raises:
        ConversionError: Names the first key that has no place.
    """
    state = {}
    for key, value in released.items():
        if key == (PROTOTYPES if head == 'ProtoSegHead' else MEMORY):
            state.update(_memory(key, value, head))
            continue
        if head == 'ProtoSegHead' and _SECOND_NAMES.fullmatch(key):
            continue
        name = _place(key, _PLACES[head])
        if name is None:
            raise ConversionError(
                f'{key} has no place in a model with {head}; is this a checkpoint of '
                f'{_METHODS[head]}?'
            )
        state[name] = value
    if head == 'MDRLHead':
        _absorb_bias(state, 'projection.convs.0')
    elif head == 'ProtoSegHead':
        _absorb_bias(state, 'bottleneck')
    elif head == 'MCIBIPlusPlusHead':
        _draw_noise(state)
    _first_the_pooled(state)
    return state


def _memory(key: str, value: Tensor, head: str) -> State:
    """The bank of a head from the released memory, [K, N, C], or [K, 2] of MCIBI++."""
    counter = {f'{HEAD}.bank.num_updates': torch.zeros((), dtype=torch.int64)}
    if head == 'MCIBIPlusPlusHead':
        if value.dim() != 2 or value.shape[1] != 2:
            raise ConversionError(f'{key} is {tuple(value.shape)}, not [K, 2]')
        return {f'{HEAD}.bank.statistics': value.clone(), **counter}
    if value.dim() != 3:
        raise ConversionError(f'{key} is {tuple(value.shape)}, not [K, N, C]')
    if head == 'MDRLHead':
        return {f'{HEAD}.bank.distributions': value.clone(), **counter}
    if head == 'ProtoSegHead':
        # the release brings them to unit length when it next uses them
        return {f'{HEAD}.bank.distributions': F.normalize(value, dim=-1), **counter}
    if value.shape[1] != 1:
        raise ConversionError(
            f'{key} is {tuple(value.shape)}, not one vector for each class: [K, 1, C]'
        )
    return {
        f'{HEAD}.bank.features': value[:, 0].clone(),
        # the release knows a class that it has never seen by a row of zeros
        f'{HEAD}.bank.filled': value[:, 0].any(dim=1),
        **counter,
    }


def _draw_noise(state: State) -> None:
    """MCIBI++: the rows that the release draws anew in each forward pass, and doesn't save."""
    statistics = state.get(f'{HEAD}.bank.statistics')
    width = state.get(f'{HEAD}.bottleneck.conv.weight')
    if statistics is not None and width is not None:
        noise = class_noise(len(statistics), len(width))
        state[f'{HEAD}.bank.noise'] = noise.to(statistics)


def _absorb_bias(state: State, block: str) -> None:
    """CMDL and ProtoSeg have a conv with a bias before a norm, which takes it off again."""
    bias = state.pop(f'{HEAD}.{block}.conv.bias', None)
    mean = f'{HEAD}.{block}.bn.running_mean'
    if bias is not None and mean in state:
        state[mean] = state[mean] - bias


def _first_the_pooled(state: State) -> None:
    """ASPP joins the pooled branch last there and first here."""
    name, pooled = f'{CONTEXT}.bottleneck.conv.weight', f'{CONTEXT}.image_pool.1.conv.weight'
    if name in state and pooled in state:
        weight, channels = state[name], state[pooled].shape[0]
        state[name] = torch.cat([weight[:, -channels:], weight[:, :-channels]], dim=1)


def check_fit(state: State, model: nn.Module) -> None:
    """Checks that a state dict has exactly the keys and shapes of a model.

    Args:
        state (dict[str, Tensor]): What :func:`convert_state` gives.
        model (nn.Module): Model of the config; its parameters may be without memory.

    Raises:
        ConversionError: Names the first key that is too much, of another shape, or missing.
    """
    expected = model.state_dict()
    for key, value in state.items():
        if key not in expected:
            raise ConversionError(
                f"the checkpoint has {key}, which the config's model doesn't have; "
                'use the config with the same backbone and context'
            )
        if value.shape != expected[key].shape:
            raise ConversionError(
                f'{key} is {tuple(value.shape)} in the checkpoint and '
                f'{tuple(expected[key].shape)} in the model of the config; use the config with the '
                'same backbone, context and number of classes, or let --out-config write one'
            )
    for key in expected:
        # older checkpoints don't have the counters, which only matter to a norm without momentum
        if key not in state and not key.endswith('num_batches_tracked'):
            raise ConversionError(
                f'the model of the config has {key}, which the checkpoint '
                "doesn't have; "
                'use the config with the same backbone and context'
            )
