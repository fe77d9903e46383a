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

import mmseg_cmdl  # noqa: F401  before anything of mmseg: see mmseg_cmdl.compat

from mmseg_cmdl import launch  # isort: skip
from mmseg_cmdl.command_line import tool  # isort: skip
from mmseg_cmdl.conversion import convert  # isort: skip


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config of this package for the same model')
    parser.add_argument('source', help='released checkpoint')
    parser.add_argument('target', help='file to write')
    parser.add_argument('--out-config', help='config to write, changed so that the model fits')
    launch.add_overrides(parser)
    return parser.parse_args(argv)


@tool
def main(argv=None):
    args = parse_args(argv)
    done = convert(
        args.config,
        args.source,
        args.target,
        head='MDRLHead',
        cfg_options=args.cfg_options,
        out_config=args.out_config,
    )
    bank = done.state['decode_head.bank.distributions']
    print(f'{args.target}: {len(done.state)} tensors, bank {tuple(bank.shape)}')
    for key, value in done.changed.items():
        print(f'{args.out_config}: model.{key}={value!r}')
    print(*done.notes, sep='\n')


if __name__ == '__main__':
    main()
