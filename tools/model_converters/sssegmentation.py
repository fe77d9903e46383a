"""Turn a checkpoint of MCIBI or MCIBI++ in the sssegmentation toolbox into one of this package.

    python tools/model_converters/sssegmentation.py CONFIG RELEASED.pth CONVERTED.pth

CONFIG is the config of this package for the same model; configs/mcibi/README.md lists the 18
released models of MCIBI, configs/mcibipp/README.md the 37 of MCIBI++. A released model is known by
the name of its file, or by --model; then what decides its function and has no tensor (activations,
dilations, classes) is checked too. Of any other checkpoint these are taken from CONFIG, and
printed. --out-config writes a config with the widths of the checkpoint and the settings of the
released model. Understood are FCN alone, or with its context: ASPP (ASPPHead here) or pyramid
pooling (PSPHead), and MCIBI++'s feature pyramid on UPerNet, on ResNet, ResNeSt, HRNet, ViT (MCIBI)
and Swin (MCIBI++). Every key must find its place and every parameter of the model its value;
otherwise nothing is written and the first key that doesn't fit is named.
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
    parser.add_argument('--model', help='released model, such as mcibi_deeplabv3_r50_lip')
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
        model=args.model,
        cfg_options=args.cfg_options,
        out_config=args.out_config,
    )
    filled = done.state.get('decode_head.bank.filled')
    if filled is None:  # MCIBI++, whose classes start at (0, 1)
        statistics = done.state['decode_head.bank.statistics']
        filled = (statistics != statistics.new_tensor([0, 1])).any(dim=1)
    print(
        f'{args.target}: {len(done.state)} tensors, {int(filled.sum())} of {len(filled)} classes '
        f'in memory; {done.model or "not a released model by name"}'
    )
    for key, value in done.changed.items():
        print(f'{args.out_config}: model.{key}={value!r}')
    print(*done.notes, sep='\n')


if __name__ == '__main__':
    main()
