"""Turn a checkpoint of MCIBI or MCIBI++ in the sssegmentation toolbox into one of this package.

    python tools/model_converters/sssegmentation.py CONFIG RELEASED.pth CONVERTED.pth

CONFIG is the config of this package for the same model; configs/mcibi/README.md lists the 18
released models of MCIBI, configs/mcibipp/README.md the 37 of MCIBI++. A released model is known
by the name of its file, or by --model. Then the settings that change its predictions but have no
tensor (activations, dilations, classes) are checked too; for any other checkpoint they are taken
from CONFIG, and printed. --out-config writes a config with the channels of the checkpoint and the
settings of the released model. The converter knows FCN alone, FCN with a context, which is ASPP
(ASPPHead here) or pyramid pooling (PSPHead), and MCIBI++'s feature pyramid on UPerNet, on the
backbones ResNet, ResNeSt, HRNet, ViT (MCIBI) and Swin (MCIBI++). If a key has no place, or a
parameter of the model no value, nothing is written and the message names the first such key.
"""

import mmseg_cmdl  # noqa: F401  before anything of mmseg: see mmseg_cmdl.compat

from mmseg_cmdl.command_line import tool  # isort: skip
from mmseg_cmdl.conversion import convert_as_asked, converter_parser  # isort: skip


def parse_args(argv=None):
    parser = converter_parser(__doc__, 'released model, such as mcibi_deeplabv3_r50_lip')
    return parser.parse_args(argv)


@tool
def main(argv=None):
    convert_as_asked(parse_args(argv))


if __name__ == '__main__':
    main()
