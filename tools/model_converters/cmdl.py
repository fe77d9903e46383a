"""Turn a checkpoint of CMDL (MDRL) into one for MDRLHead.

    python tools/model_converters/cmdl.py CONFIG RELEASED.pth CONVERTED.pth

CONFIG is the config of this package for the same model. Understood is what CMDL's repository
trains: a ResNet with FCN alone, or with its context: pyramid pooling (PSPHead), criss-cross
attention (CCHead with concat_input=False) or ASPP (ASPPHead). What decides the function and has no
tensor (activations, dilations, classes) is taken from CONFIG, and printed. --out-config writes a
config with the widths of the checkpoint. Every key must find its place and every parameter of the
model its value; otherwise nothing is written and the first key that doesn't fit is named.
"""

import argparse
import sys

import mmseg_cmdl  # noqa: F401  before anything of mmseg: see mmseg_cmdl.compat

from mmengine.config import DictAction  # isort: skip
from mmseg_cmdl.conversion import ConversionError, convert  # isort: skip


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config of this package for the same model')
    parser.add_argument('source', help='released checkpoint')
    parser.add_argument('target', help='file to write')
    parser.add_argument('--out-config', help='config to write, changed so that the model fits')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='changes to the config, key=value'
    )
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    try:
        done = convert(
            args.config,
            args.source,
            args.target,
            head='MDRLHead',
            cfg_options=args.cfg_options,
            out_config=args.out_config,
        )
    except (ConversionError, FileNotFoundError) as error:
        sys.exit(f'error: {error}')
    bank = done.state['decode_head.bank.distributions']
    print(f'{args.target}: {len(done.state)} tensors, bank {tuple(bank.shape)}')
    for key, value in done.changed.items():
        print(f'{args.out_config}: model.{key}={value!r}')
    print(*done.notes, sep='\n')


if __name__ == '__main__':
    main()
