"""Complexity table (MCIBI, table 3): what each context module costs on a feature map.

Parameters, multiply-adds, time and memory of one inference pass. A module is a decode head without
its classifier. Prints the table, at the paper's size with the paper's figures beside, and writes
complexity.json and complexity.png. The paper's GMACs are of the convolutions alone, without the
products of an attention. `tools/benchmark.py complexity` times the modules in turn.

Example:
    python tools/analysis/complexity.py --out work_dirs/complexity
    python tools/analysis/complexity.py --size 1 512 64 64 --modules PPM MDRL --out work_dirs/small
    python tools/analysis/complexity.py --configs my_config.py --out work_dirs/mine
"""

import argparse
from pathlib import Path

import torch

from mmseg_cmdl.analysis import command_line, measure_complexity
from mmseg_cmdl.analysis.complexity import (
    CONTEXTS,
    MCIBI_TABLE_3,
    MCIBI_TABLE_3_SIZE,
    build_context,
    head_of_config,
)
from mmseg_cmdl.command_line import device, number, positive, seed, text_table, tool
from mmseg_cmdl.config_file import load_config, type_name
from mmseg_cmdl.config_overrides import add_overrides, as_typed
from mmseg_cmdl.errors import InputError, one_line
from mmseg_cmdl.visualization import draw_complexity, save_figure
from mmseg_cmdl.written_files import make_folder, refuse_same


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--out', type=Path, required=True, metavar='FOLDER', help='folder for table and picture'
    )
    parser.add_argument(
        '--modules', nargs='+', metavar='NAME', help=f'any of: {", ".join(CONTEXTS)} (default: all)'
    )
    parser.add_argument(
        '--configs',
        nargs='+',
        default=[],
        metavar='CONFIG',
        help="decode heads of these configs instead, with --size's channels",
    )
    parser.add_argument(
        '--size',
        type=positive,
        nargs=4,
        default=[1, 2048, 128, 128],
        metavar=('B', 'C', 'H', 'W'),
        help='feature map (default: 1 2048 128 128)',
    )
    parser.add_argument(
        '--channels', type=positive, default=512, help='inside the heads (default: %(default)s)'
    )
    parser.add_argument('--num-classes', type=positive, default=19, help='(default: %(default)s)')
    parser.add_argument(
        '--seconds',
        type=number(0),
        default=2,
        help='time each module for this long; 0 measures no time (default: %(default)s)',
    )
    parser.add_argument('--device', type=device, default='cpu', help='cpu or cuda (default: cpu)')
    parser.add_argument('--threads', type=positive, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument('--seed', type=seed, default=0, help='(default: 0)')
    add_overrides(parser, '--configs')
    args = parser.parse_args(argv)
    unknown = set(args.modules or ()) - set(CONTEXTS)
    if unknown:
        parser.error(
            f'there is no module {", ".join(sorted(unknown))}; there are: {", ".join(CONTEXTS)}'
        )
    refuse_same(args.out, args.configs, '--out')
    make_folder(args.out)
    return args


def build(name, cfg, args):
    """A module, or one sentence why there is none of these sizes."""
    try:
        return build_context(cfg, args.size[1], args.channels, args.num_classes)
    except Exception as error:  # other people's heads
        raise InputError(
            f'{name} can not be built for {args.size[1]} channels in and {args.channels} inside: '
            f'{one_line(error)}; look at --size, --channels and {as_typed(args.cfg_options)}'
        ) from error


@tool
def main(argv=None):
    args = parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    heads = {}
    if not args.configs or args.modules:
        heads = {name: CONTEXTS[name] for name in args.modules or CONTEXTS}
    for path in args.configs:
        head = head_of_config(load_config(path, args.cfg_options))
        heads[Path(path).stem] = {**head, 'in_channels': args.size[1]}
    built = {name: build(name, cfg, args) for name, cfg in heads.items()}
    comparable = tuple(args.size) == MCIBI_TABLE_3_SIZE and args.channels == 512
    rows = []
    for name, cfg in command_line.progress(heads.items(), len(heads), 'measuring'):
        rows.append(
            dict(
                module=name,
                head=type_name(cfg['type']),
                **measure_complexity(
                    built.pop(name), args.size, args.device, args.seconds or None, args.seed
                ),
                paper=MCIBI_TABLE_3.get(name) if comparable else None,
            )
        )
    device = (
        torch.cuda.get_device_name(args.device)
        if args.device.startswith('cuda')
        else f'CPU, {torch.get_num_threads()} thread{"s" * (torch.get_num_threads() > 1)}'
    )
    size = '×'.join(map(str, args.size))
    header = ['module', 'params M', 'GMACs', 'of convs', 'ms', 'MiB']
    if comparable:
        header += ['paper: M', 'paper: GMACs', 'paper: ms (V100)']
    lines = []
    for row in rows:
        values = [row[key] for key in ('params_m', 'gmacs', 'convs_gmacs', 'ms', 'peak_mib')]
        if comparable:
            values += row['paper'] or [None] * 3
        lines.append([row['module'], *('-' if v is None else f'{v:.2f}' for v in values)])
    print(f'Inference on a {size} map, heads without classifier, on {device}')
    print(text_table(header, lines))
    written = [args.out / 'complexity.json', args.out / 'complexity.png']
    command_line.write_json(
        written[0],
        dict(
            size=args.size,
            channels=args.channels,
            num_classes=args.num_classes,
            device=device,
            torch=torch.__version__,
            modules=rows,
        ),
    )
    save_figure(draw_complexity(rows, f'{size} features, {device}'), written[1])
    print(*written, sep='\n')


if __name__ == '__main__':
    main()
