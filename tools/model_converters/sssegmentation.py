"""Turn a checkpoint of MCIBI in the sssegmentation toolbox into one for MCIBIHead.

    python tools/model_converters/sssegmentation.py CONFIG RELEASED.pth CONVERTED.pth

CONFIG is the config of this package for the same model: same backbone, context, number of classes.
Understood are ResNet and other backbones whose parameters have the same names in both toolboxes,
FCN alone, or with its context: ASPP (ASPPHead here) or pyramid pooling (PSPHead). Every key must
find its place and every parameter of the model its value; otherwise nothing is written and the
first key that doesn't fit is named.
"""

import argparse
import re
import sys
from pathlib import Path

import torch

import mmseg_cmdl  # noqa: F401  before anything of mmseg: see mmseg_cmdl.compat

from mmengine.config import Config  # isort: skip
from mmengine.registry import init_default_scope  # isort: skip
from mmseg.registry import MODELS  # isort: skip

HEAD = 'decode_head'
CONTEXT = f'{HEAD}.context.head'
# A conv and its norm are numbers in a Sequential there, and named in a ConvModule here.
BLOCK = r'(?P<part>[01])\.(?P<leaf>\w+)'
PLACES = [
    (r'backbone_net\.(?P<rest>.+)', 'backbone.{rest}'),
    (rf'bottleneck\.{BLOCK}', HEAD + '.bottleneck.{block}'),
    (rf'decoder_stage1\.{BLOCK}', HEAD + '.coarse_classifier.0.{block}'),
    (r'decoder_stage1\.4\.(?P<leaf>\w+)', HEAD + '.coarse_classifier.2.{leaf}'),
    (rf'decoder_stage2\.{BLOCK}', HEAD + '.final_conv.{block}'),
    (r'decoder_stage2\.4\.(?P<leaf>\w+)', HEAD + '.conv_seg.{leaf}'),
    (
        rf'memory_module\.self_attention\.(?P<rest>\w+_project(\.\d+)?)\.{BLOCK}',
        HEAD + '.relation.{rest}.{block}',
    ),
    (
        rf'memory_module\.self_attention_ms\.(?P<rest>\w+_project(\.\d+)?)\.{BLOCK}',
        HEAD + '.context_relation.{rest}.{block}',
    ),
    (rf'memory_module\.bottleneck\.{BLOCK}', HEAD + '.fuse_pixels.{block}'),
    (rf'memory_module\.bottleneck_ms\.{BLOCK}', HEAD + '.fuse_context.{block}'),
    # ASPP
    (
        rf'context_within_image_module\.parallel_branches\.(?P<rest>\d+)\.{BLOCK}',
        CONTEXT + '.aspp_modules.{rest}.{block}',
    ),
    (
        r'context_within_image_module\.global_branch\.(?P<after_pool>[12])\.(?P<leaf>\w+)',
        CONTEXT + '.image_pool.1.{block}',
    ),
    # pyramid pooling
    (
        r'context_within_image_module\.branches\.(?P<rest>\d+)\.(?P<after_pool>[12])\.(?P<leaf>\w+)',
        CONTEXT + '.psp_modules.{rest}.1.{block}',
    ),
    (rf'context_within_image_module\.bottleneck\.{BLOCK}', CONTEXT + '.bottleneck.{block}'),
    (rf'auxiliary_decoder\.{BLOCK}', 'auxiliary_head.convs.0.{block}'),
    (r'auxiliary_decoder\.4\.(?P<leaf>\w+)', 'auxiliary_head.conv_seg.{leaf}'),
]
MEMORY = 'memory_module.memory'
GLOBAL_BRANCH = 'context_within_image_module.global_branch.1.weight'


class ConversionError(Exception):
    """A checkpoint that doesn't fit; the message names the first key that doesn't."""


def read_state(path):
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


def place(key):
    """Name here of a released parameter; None if it has none."""
    for pattern, target in PLACES:
        found = re.fullmatch(pattern, key)
        if found:
            groups = found.groupdict()
            part = groups.get('part') or str(int(groups.get('after_pool', 1)) - 1)
            block = f'{("conv", "bn")[int(part)]}.{groups.get("leaf")}'
            return target.format(**groups, block=block)
    return None


def convert_state(released):
    """Released state dict to ours.

    Args:
        released (dict[str, Tensor]): Under the released names.

    Returns:
        dict[str, Tensor]: Under the names of a segmentor with MCIBIHead.

    Raises:
        ConversionError: Names the first key that has no place.
    """
    state = {}
    for key, value in released.items():
        if key == MEMORY:
            if value.dim() != 3 or value.shape[1] != 1:
                raise ConversionError(
                    f'{key} is {tuple(value.shape)}, not one vector for each class: [K, 1, C]'
                )
            state[f'{HEAD}.bank.features'] = value[:, 0].clone()
            # the release knows a class that it has never seen by a row of zeros
            state[f'{HEAD}.bank.filled'] = value[:, 0].any(dim=1)
            state[f'{HEAD}.bank.num_updates'] = torch.zeros((), dtype=torch.int64)
            continue
        name = place(key)
        if name is None:
            raise ConversionError(
                f'{key} has no place in a model with MCIBIHead; is this a '
                'checkpoint of MCIBI (MemoryNet)?'
            )
        state[name] = value
    if GLOBAL_BRANCH in released:
        _first_the_pooled(state, released[GLOBAL_BRANCH].shape[0])
    return state


def _first_the_pooled(state, channels):
    """ASPP joins the pooled branch last there and first here."""
    name = f'{CONTEXT}.bottleneck.conv.weight'
    if name in state:
        weight = state[name]
        state[name] = torch.cat([weight[:, -channels:], weight[:, :-channels]], dim=1)


def check_fit(state, model):
    """Refuse a state that isn't exactly the model's.

    Args:
        state (dict[str, Tensor]): What :func:`convert_state` gives.
        model (nn.Module): Of the config; its parameters may be without memory.

    Raises:
        ConversionError: Names the first key that is too much, of another shape, or missing.
    """
    expected = model.state_dict()
    for key, value in state.items():
        if key not in expected:
            raise ConversionError(
                f'the checkpoint has {key}, which the model of the config has '
                'not; use the config with the same backbone and context'
            )
        if value.shape != expected[key].shape:
            raise ConversionError(
                f'{key} is {tuple(value.shape)} in the checkpoint and '
                f'{tuple(expected[key].shape)} in the model of the config; use the config with the '
                'same backbone, context and number of classes'
            )
    for key in expected:
        # older checkpoints don't have the counters, which only matter to a norm without momentum
        if key not in state and not key.endswith('num_batches_tracked'):
            raise ConversionError(
                f'the model of the config has {key}, for which the checkpoint '
                'has nothing; use the config with the same backbone and context'
            )


def convert(config, source, target):
    """Convert a file; see the module.

    Returns:
        dict[str, Tensor]: The state that was written.

    Raises:
        ConversionError: Nothing has been written.
    """
    cfg = Config.fromfile(config)
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    cfg.model.pretrained = None
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    head = getattr(model, HEAD, None)
    if type(head).__name__ != 'MCIBIHead':
        raise ConversionError(f'{config} has a {type(head).__name__}, not an MCIBIHead')
    state = convert_state(read_state(source))
    check_fit(state, model)
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f'{target.name}.part')
    torch.save(dict(state_dict=state, meta=dict(converted_from=Path(source).name)), unfinished)
    unfinished.replace(target)
    return state


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config of this package for the same model')
    parser.add_argument('source', help='released checkpoint')
    parser.add_argument('target', help='file to write')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    try:
        state = convert(args.config, args.source, args.target)
    except (ConversionError, FileNotFoundError) as error:
        sys.exit(f'error: {error}')
    filled = state[f'{HEAD}.bank.filled']
    print(
        f'{args.target}: {len(state)} tensors, {int(filled.sum())} of {len(filled)} classes in '
        'memory'
    )


if __name__ == '__main__':
    main()
