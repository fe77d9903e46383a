"""Turn a checkpoint of ProtoSeg into one for ProtoSegHead.

    python tools/model_converters/protoseg.py CONFIG RELEASED.pth CONVERTED.pth --out-config NEW.py

CONFIG is the config of this package for the same network, protoseg_fcn_hr48 for the released one.
A released model is recognised by the name of its file, or by --model. Then the settings that change
its predictions but have no tensor are checked too: its images stay BGR, its HRNet aligns corners,
and an embedding is first normalised along the width of the map (norm_axis='released'). The shipped
config has none of these. --out-config writes a config that has them; use it with the converted
file. If a key has no place, or a parameter of the model no value, nothing is written and the
message names the first such key.
"""

import mmseg_cmdl  # noqa: F401  before anything of mmseg: see mmseg_cmdl.compat

from mmseg_cmdl.command_line import tool  # isort: skip
from mmseg_cmdl.conversion import convert_as_asked, converter_parser  # isort: skip


def parse_args(argv=None):
    parser = converter_parser(__doc__, 'name of the released model, as its file is called')
    return parser.parse_args(argv)


@tool
def main(argv=None):
    convert_as_asked(parse_args(argv), 'ProtoSegHead')


if __name__ == '__main__':
    main()
