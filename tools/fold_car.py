"""Fold a checkpoint trained with CAR into one for the plain segmentor, which predicts the same.

    python tools/fold_car.py CONFIG CHECKPOINT OUT [--check] [--out-config PLAIN.py]

CONFIG is that of the training, with `type='CAREncoderDecoder'` or `'CARCascadeEncoderDecoder'`. The
1x1 linear conv is merged into `conv_seg` (with position='released', into the 1x1 conv after it; its
bias can't be merged into a larger one, which is refused); a conv that `pointwise` made 1x1 becomes
the middle of a kernel of its former size, which is the same conv, so OUT loads into the config
without CAR.
"""

import argparse
import copy
from pathlib import Path

import mmseg_cmdl  # noqa: F401  before anything of mmseg: see mmseg_cmdl.compat

import torch  # isort: skip
from mmengine.model import revert_sync_batchnorm  # isort: skip
from mmengine.registry import init_default_scope  # isort: skip
from mmseg.registry import MODELS  # isort: skip
from mmseg_cmdl.checkpoint_file import checked_checkpoint, read_state  # isort: skip
from mmseg_cmdl.config_file import load_config, setting_up, type_name, without_pretrained  # isort: skip
from mmseg_cmdl.config_overrides import add_overrides  # isort: skip
from mmseg_cmdl.errors import InputError, one_line  # isort: skip
from mmseg_cmdl.command_line import positive, tool  # isort: skip
from mmseg_cmdl.deployment import in_channels  # isort: skip
from mmseg_cmdl.models.segmentors.class_aware_regularization import CAR_OPTIONS  # isort: skip
from mmseg_cmdl.written_files import refuse_same, written_beside  # isort: skip

TOLERANCE = 1e-5


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file of the training with CAR')
    parser.add_argument('checkpoint', help='checkpoint file or URL of that training')
    parser.add_argument('out', type=Path, help='where the plain checkpoint goes')
    parser.add_argument(
        '--check',
        action='store_true',
        help='predict random input with both and '
        f'fail unless logits agree to {TOLERANCE:g} of the largest',
    )
    parser.add_argument(
        '--size',
        type=positive,
        nargs=2,
        metavar=('H', 'W'),
        default=[128, 128],
        help='size of that input (default: 128 128)',
    )
    parser.add_argument(
        '--out-config',
        type=Path,
        metavar='FILE',
        help='write the config of the plain segmentor there, complete',
    )
    add_overrides(parser)
    return parser.parse_args(argv)


def plain_config(model):
    """Config of the segmentor without CAR.

    Raises:
        InputError: The model isn't one with CAR.
    """
    kind = model.get('type')
    cls = MODELS.get(kind) if isinstance(kind, str) else kind
    plain_type = getattr(cls, 'plain_type', None)
    if plain_type is None:
        raise InputError(
            f"the config's model is {type_name(kind)!r}, which has nothing to fold: "
            'give the config with CAREncoderDecoder or CARCascadeEncoderDecoder'
        )
    plain = copy.deepcopy(model)
    plain.type = plain_type
    for option in CAR_OPTIONS:
        plain.pop(option, None)
    return plain


def build(model):
    """A model that is initialised by nothing: a checkpoint is loaded anyway."""
    model = copy.deepcopy(model)
    without_pretrained(model)
    return revert_sync_batchnorm(MODELS.build(model)).eval()


def load(model, state, path):
    """Put a checkpoint's state into the model with CAR; every key must fit."""
    if model.car.linears and not any(key.startswith('car.linear.') for key in state):
        raise InputError(
            f'{path} has no car.linear.weight: it is a plain checkpoint, there is nothing to fold'
        )
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f'{path} does not fit the config: {one_line(error)}') from error


@torch.no_grad()
def largest_difference(model, plain, size):
    """(largest difference of the logits, largest logit) on a random image."""
    image = torch.randn(1, in_channels(model), *size, generator=torch.Generator().manual_seed(0))
    metas = [dict(img_shape=tuple(size), pad_shape=tuple(size), ori_shape=tuple(size))]
    torch.manual_seed(0)
    expected = model.encode_decode(image, metas)
    torch.manual_seed(0)  # some heads draw random numbers
    got = plain.encode_decode(image, metas)
    return (got - expected).abs().max().item(), expected.abs().max().item()


@tool
def main(argv=None):
    args = parse_args(argv)
    for option, out in (('OUT', args.out), ('--out-config', args.out_config)):
        if out is not None:
            refuse_same(out, [args.config, args.checkpoint], option)
    if args.out_config is not None:
        refuse_same(args.out_config, [args.out], '--out-config')
        if args.out_config.suffix != '.py':
            raise InputError(f'--out-config {args.out_config}: its name must end in .py')
    cfg = load_config(args.config, args.cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    plain_model = plain_config(cfg.model)
    checkpoint, state = read_state(checked_checkpoint(args.checkpoint))
    with setting_up(cfg, args.config, args.cfg_options):
        model = build(cfg.model)
    load(model, state, args.checkpoint)
    try:
        folded = model.folded_state_dict()
    except ValueError as error:
        raise InputError(f'{args.checkpoint}: {error}') from error

    if args.check:
        plain = build(plain_model)
        plain.load_state_dict(folded)
        difference, scale = largest_difference(model, plain, args.size)
        print(f'largest difference of the logits: {difference:.3g}, largest logit: {scale:.3g}')
        if not difference <= TOLERANCE * max(1.0, scale):
            raise InputError(
                f'the folded model does not predict the same, so {args.out} was not written'
            )
    with written_beside(args.out) as out:
        torch.save(dict(meta=checkpoint.get('meta', {}), state_dict=folded), out)
    print(f'{args.out}: checkpoint for {type_name(plain_model.type)}')
    if args.out_config:
        cfg.model = plain_model
        with written_beside(args.out_config) as out:
            cfg.dump(out)
        print(f'{args.out_config}: its config')


if __name__ == '__main__':
    main()
