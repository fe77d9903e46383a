"""Fold a checkpoint trained with CAR into one for the plain segmentor, which predicts the same.

    python tools/fold_car.py CONFIG CHECKPOINT OUT [--check] [--out-config PLAIN.py]

CONFIG is that of the training, with `type='CAREncoderDecoder'` or `'CARCascadeEncoderDecoder'`. The
1x1 linear conv is merged into `conv_seg`; a conv that `pointwise` made 1x1 becomes the middle of a
kernel of its former size, which is the same conv, so OUT loads into the config without CAR.
"""

import argparse
import copy
from pathlib import Path

import mmseg_cmdl  # noqa: F401  before anything of mmseg: see mmseg_cmdl.compat

import torch  # isort: skip
from mmengine.config import DictAction  # isort: skip
from mmengine.model import revert_sync_batchnorm  # isort: skip
from mmengine.registry import init_default_scope  # isort: skip
from mmengine.runner import CheckpointLoader  # isort: skip
from mmseg.registry import MODELS  # isort: skip
from mmseg_cmdl import launch  # isort: skip
from mmseg_cmdl.models.segmentors.class_aware_regularization import CAR_OPTIONS  # isort: skip

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
        type=int,
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
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override settings of the config',
    )
    args = parser.parse_args(argv)
    if args.out.exists() and args.out.samefile(args.checkpoint):
        parser.error('OUT is CHECKPOINT itself; choose another name')
    return args


def plain_config(model):
    """Config of the segmentor without CAR.

    Raises:
        SystemExit: The model isn't one with CAR.
    """
    cls = MODELS.get(model.type)
    plain_type = getattr(cls, 'plain_type', None)
    if plain_type is None:
        raise SystemExit(
            f"error: the config's model is {model.type!r}, which has nothing to fold: "
            'give the config with CAREncoderDecoder or CARCascadeEncoderDecoder'
        )
    plain = copy.deepcopy(model)
    plain.type = plain_type
    for option in CAR_OPTIONS:
        plain.pop(option, None)
    return plain


def without_downloads(model):
    """The same model, initialised by nothing: a checkpoint is loaded anyway."""
    model = copy.deepcopy(model)
    for part in (model, model.backbone):
        for key in ('pretrained', 'init_cfg'):
            if part.get(key):
                part[key] = False if part.get('type') == 'TIMMBackbone' else None
    return model


def build(model):
    return revert_sync_batchnorm(MODELS.build(without_downloads(model))).eval()


def read_state(path):
    """(checkpoint, state) of a checkpoint file, DistributedDataParallel's prefix taken off."""
    checkpoint = CheckpointLoader.load_checkpoint(launch.checked_checkpoint(path), 'cpu')
    state = checkpoint.get('state_dict', checkpoint)
    return checkpoint, {
        key[7:] if key.startswith('module.') else key: value for key, value in state.items()
    }


def load(model, state, path):
    """Put a checkpoint's state into the model with CAR; every key must fit."""
    if model.car.linear is not None and 'car.linear.weight' not in state:
        raise SystemExit(
            f'error: {path} has no car.linear.weight: it is a plain checkpoint, there '
            'is nothing to fold'
        )
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise SystemExit(f'error: {path} does not fit the config: {error}') from error


@torch.no_grad()
def largest_difference(model, plain, size):
    """(largest difference of the logits, largest logit) on a random image."""
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    metas = [dict(img_shape=tuple(size), pad_shape=tuple(size), ori_shape=tuple(size))]
    torch.manual_seed(0)
    expected = model.encode_decode(image, metas)
    torch.manual_seed(0)  # some heads draw random numbers
    got = plain.encode_decode(image, metas)
    return (got - expected).abs().max().item(), expected.abs().max().item()


def main(argv=None):
    args = parse_args(argv)
    cfg = launch.load_config(args.config, args.cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    plain_model = plain_config(cfg.model)
    model = build(cfg.model)
    checkpoint, state = read_state(args.checkpoint)
    load(model, state, args.checkpoint)
    folded = model.folded_state_dict()

    if args.check:
        plain = build(plain_model)
        plain.load_state_dict(folded)
        difference, scale = largest_difference(model, plain, args.size)
        print(f'largest difference of the logits: {difference:.3g}, largest logit: {scale:.3g}')
        if not difference <= TOLERANCE * max(1.0, scale):
            raise SystemExit(
                f'error: the folded model does not predict the same, so {args.out} was not written'
            )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(meta=checkpoint.get('meta', {}), state_dict=folded), args.out)
    print(f'{args.out}: checkpoint for {plain_model.type}')
    if args.out_config:
        cfg.model = plain_model
        args.out_config.parent.mkdir(parents=True, exist_ok=True)
        cfg.dump(args.out_config)
        print(f'{args.out_config}: its config')


if __name__ == '__main__':
    main()
