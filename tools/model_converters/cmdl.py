"""Turn a checkpoint of CMDL (MDRL) into one for MDRLHead.

    python tools/model_converters/cmdl.py CONFIG RELEASED.pth CONVERTED.pth

CONFIG is the config of this package for the same model. The converter knows what CMDL's
repository trains: a ResNet with FCN alone, or with a context, which is pyramid pooling (PSPHead),
criss-cross attention (CCHead with concat_input=False) or ASPP (ASPPHead). Settings that change the
predictions but have no tensor (activations, dilations, classes) are taken from CONFIG, and printed.
--out-config writes a config with the channels of the checkpoint. If a key has no place, or a
parameter of the model no value, nothing is written and the message names the first such key.
"""

import mmseg_cmdl  # noqa: F401  before anything of mmseg: see mmseg_cmdl.compat

from mmseg_cmdl.command_line import tool  # isort: skip
from mmseg_cmdl.conversion import convert_as_asked, converter_parser  # isort: skip


def parse_args(argv=None):
    return converter_parser(__doc__).parse_args(argv)


@tool
def main(argv=None):
    convert_as_asked(parse_args(argv), 'MDRLHead')


if __name__ == '__main__':
    main()
