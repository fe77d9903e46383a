"""The gallery in docs/: every figure of tools/analysis, from the demo's checkpoints.

Runs the commands of tools/analysis on the FCN and the MDRL that `make demo` trained, and writes
gallery.md and its pictures, the large ones reduced to 256 colours, and a copy of demo.png.

Example:
    make demo
    python tools/analysis/gallery.py --demo work_dirs/demo --out docs
    python tools/analysis/gallery.py --models FCN_CONFIG FCN_CKPT MDRL_CONFIG MDRL_CKPT --out docs
"""

import argparse
import importlib.util
import json
import shutil
import tempfile
from pathlib import Path
from typing import Callable, List, NamedTuple, Optional, Sequence

from PIL import Image

from mmseg_cmdl.analysis import command_line
from mmseg_cmdl.checkpoint_file import checked_checkpoint, latest_checkpoint
from mmseg_cmdl.command_line import positive, seed, tool
from mmseg_cmdl.errors import InputError
from mmseg_cmdl.written_files import make_folder, written_beside

FOLDERS = {'FCN': 'fcn', 'MDRL': 'mdrl_fcn'}  # of each model in that of the demo
NAMES = tuple(FOLDERS)


class Figure(NamedTuple):
    """A picture of the gallery."""

    title: str
    command: str  # module of tools/analysis
    arguments: Optional[str]  # after the models; None: what an earlier figure's command wrote
    pictures: List[str]  # of what it writes, those that are shown
    text: str  # what is to be seen
    names: Sequence[str] = NAMES  # of the models that it takes
    numbers: Optional[Callable] = None  # from the folder it wrote, a line with its main numbers


def _read(folder, name):
    return json.loads((folder / f'{name}.json').read_text(encoding='utf-8'))


def _usage(folder):
    found = _read(folder, 'distribution_map')['all']
    return (
        f'{found["pixels"]} pixels; entropy of use {found["entropy"]:.2f}; {found["dead"]} dead '
        f'and {found["duplicates"]} duplicate distributions; the nearest distribution of all is '
        f'of the right class for {found["nearest_distribution_accuracy"]:.1f}% of the pixels.'
    )


def _of_models(name, *keys):
    def numbers(folder):
        models = _read(folder, name)['models']
        lines = []
        for key, label in keys:
            values = [(model, found.get('all', found).get(key)) for model, found in models.items()]
            lines.append(
                f'{label}: '
                + ', '.join(f'{model} {value:.3g}' for model, value in values if value is not None)
            )
        return '; '.join(lines) + '.'

    return numbers


def _scores(folder):
    totals = _read(folder, 'predictions')['totals']
    return (
        'mIoU: ' + ', '.join(f'{name} {found["mIoU"]:.2f}' for name, found in totals.items()) + '.'
    )


def _complexity(folder):
    found = _read(folder, 'complexity')
    return f'A {"×".join(map(str, found["size"]))} map, on {found["device"]}.'


FIGURES = [
    Figure(
        'Which distribution each pixel belongs to',
        'distribution_map',
        '--draw 4 7 --patches 3 --classes arid polar',
        ['maps.png'],
        "Each pixel in the color of its class, and in the shade of the nearest of the class's "
        'distributions.',
        names=['MDRL'],
    ),
    Figure(
        'What a distribution stands for',
        'distribution_map',
        None,
        ['class_02_arid.png', 'class_05_polar.png'],
        'Above, the pixels of the class in the color of their distribution; below, for each '
        "distribution its share of the class's pixels and the real pixels nearest to it.",
        names=['MDRL'],
    ),
    Figure(
        'How evenly distributions are used',
        'distribution_map',
        None,
        ['usage.png'],
        "On the left the share of the class's pixels that each distribution has, with a cross for "
        'a dead one. On the right how even these shares are, and for how many pixels the nearest '
        'distribution is of the right class.',
        names=['MDRL'],
        numbers=_usage,
    ),
    Figure(
        'Feature space',
        'feature_space',
        '--classes tropical arid temperate cold --pixels 200',
        ['feature_space.png'],
        't-SNE of pixels of four classes. On the right the unit vectors that MDRL compares with '
        "its distributions, which are drawn in; on the left what enters FCN's classifier.",
        numbers=_of_models('feature_space', ('silhouette', 'silhouette of the classes')),
    ),
    Figure(
        'Compactness',
        'compactness',
        '',
        ['compactness.png'],
        'Variance inside the classes and distance of their centers, of what enters the '
        'classifier, at length 1.',
        numbers=_of_models(
            'compactness',
            ('intra_class_variance', 'variance inside the class'),
            ('center_similarity', 'cosine of centers'),
            ('center_distance', 'distance between centers'),
        ),
    ),
    Figure(
        'Class dependency',
        'class_dependency',
        '',
        ['class_dependency.png'],
        'Cosines of class centers, of what enters the classifier at length 1, and their '
        'difference.',
        numbers=_of_models('class_dependency', ('off_diagonal_mean', 'cosine of centers')),
    ),
    Figure(
        'Pixel relation',
        'pixel_relation',
        '--image 7 --pixel-of arid tropical',
        ['pixel_relation.png'],
        'How similar every pixel is to the marked one.',
    ),
    Figure(
        'Class-wise variance of channels',
        'channel_variance',
        '',
        ['channel_variance.png'],
        'Number of channels by their class-wise variance: a large one separates the classes '
        '(DGCW, fig. 3).',
        numbers=_of_models('channel_variance', ('mean', 'mean')),
    ),
    Figure(
        'Predictions side by side',
        'compare_predictions',
        '--sort gain --rows 4',
        ['predictions.png'],
        'The page `predictions.html` has the worst and best cases, sorts them and opens offline; '
        'here some of them.',
        numbers=_scores,
    ),
    Figure(
        'Complexity',
        'complexity',
        '--size 1 512 64 64 --channels 256 --seconds 0',
        ['complexity.png'],
        'Context modules on one feature size. Without `--seconds 0` they are timed too; MCIBI, '
        'table 3, has a larger map: `--size 1 2048 128 128 --channels 512`, the default.',
        names=[],
        numbers=_complexity,
    ),
]


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        '--demo',
        type=Path,
        default=Path('work_dirs/demo'),
        metavar='FOLDER',
        help='what `make demo` wrote (default: %(default)s)',
    )
    source.add_argument(
        '--models',
        nargs=4,
        metavar=('CONFIG', 'CKPT', 'MDRL_CONFIG', 'MDRL_CKPT'),
        help='an FCN and an MDRL instead of those of the demo',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('docs'),
        metavar='FOLDER',
        help='gallery.md and pictures/ go there (default: %(default)s)',
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        metavar='FOLDER',
        help='keep all pictures and numbers there (default: they are not kept)',
    )
    parser.add_argument('--max-images', type=positive, help='of the split (default: all)')
    parser.add_argument(
        '--only',
        nargs='+',
        choices=sorted({f.command for f in FIGURES}),
        metavar='COMMAND',
        help='only figures of these commands',
    )
    parser.add_argument('--seed', type=seed, default=0, help='(default: 0)')
    return parser.parse_args(argv)


def models_of_demo(folder):
    """Config and checkpoint of both models, one after the other.

    Raises:
        InputError: The demo hasn't run there.
    """
    found = []
    for name in FOLDERS.values():
        work_dir = folder / name
        configs = sorted(work_dir.glob('*.py'))
        checkpoint = latest_checkpoint(str(work_dir)) if work_dir.is_dir() else None
        if not configs or checkpoint is None:
            raise InputError(
                f'{work_dir} has no config and checkpoint; run `make demo` '
                'first, or name models with --models'
            )
        found += [str(configs[0]), checked_checkpoint(checkpoint)]
    return found


def run(figure, models, folder, args):
    """Run the command in this process; its pictures and numbers go to `folder`."""
    spec = importlib.util.spec_from_file_location(
        figure.command, Path(__file__).with_name(f'{figure.command}.py')
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    arguments = [*figure.arguments.split(), '--out', str(folder), '--seed', str(args.seed)]
    if len(figure.names) > 1:
        arguments += ['--names', *figure.names]
    if args.max_images and figure.command not in ('pixel_relation', 'complexity'):
        arguments += ['--max-images', str(args.max_images)]
    files = [file for name in figure.names for file in models[name]]
    module.main([*files, *arguments])


def small_copy(source, target, small=100_000):
    """The picture; with 256 colours, a third of the size, if it is larger than `small` bytes."""
    with Image.open(source) as picture:
        copy = picture.convert('RGB')
        if source.stat().st_size > small:
            # kmeans: flat colours of small areas, as those of a legend, stay what they are
            copy = copy.quantize(256, dither=Image.Dither.NONE, kmeans=2)
        with written_beside(target) as file:
            copy.save(file, optimize=True)


def command_line_of(figure):
    """As a user types it."""
    words = {'FCN': ' CONFIG CHECKPOINT', 'MDRL': ' MDRL_CONFIG MDRL_CHECKPOINT'}
    models = ''.join(words[name] for name in figure.names)
    names = ' --names ' + ' '.join(figure.names) if len(figure.names) > 1 else ''
    lines = [
        f'python tools/analysis/{figure.command}.py{models}',
        f'--out FOLDER{names} {figure.arguments}'.rstrip(),
    ]
    short = sum(map(len, lines)) < 90
    return (' ' if short else ' \\\n    ').join(lines)


@tool
def main(argv=None):
    args = parse_args(argv)
    files = args.models or models_of_demo(args.demo)
    models = dict(zip(NAMES, (files[:2], files[2:])))
    work = args.work_dir or Path(tempfile.mkdtemp(prefix='gallery_'))
    pictures = args.out / 'pictures'
    make_folder(pictures)
    lines = [
        '# Gallery',
        '',
        'What `tools/analysis` draws, from the FCN and the MDRL that `make demo` trains: a small '
        'ResNet-18, 500 iterations on satellite pictures. They show what the figures look like, '
        'not how good the methods are. Made by',
        '',
        '```shell',
        'make demo',
        'python tools/analysis/gallery.py',
        '```',
        '',
        'Each command takes any checkpoint and has `--help`; the numbers behind a picture are '
        'in the JSON or NPZ beside it.',
        '',
    ]
    try:
        for figure in FIGURES:
            if args.only and figure.command not in args.only:
                continue
            folder = work / figure.command
            if figure.arguments is not None:
                print(f'\n{figure.command}', flush=True)
                run(figure, models, folder, args)
            lines += [f'## {figure.title}', '', figure.text, '']
            if figure.numbers is not None:
                lines += ['Measured here: ' + figure.numbers(folder), '']
            if figure.arguments is not None:
                lines += ['```shell', command_line_of(figure), '```', '']
            for name in figure.pictures:
                target = f'{figure.command}_{name}' if figure.command not in name else name
                small_copy(folder / name, pictures / target)
                lines += [f'![{figure.title}](pictures/{target})', '']
    finally:
        if args.work_dir is None:
            shutil.rmtree(work, ignore_errors=True)
    page = args.out / 'gallery.md'
    command_line.write_text(page, '\n'.join(lines).rstrip() + '\n')
    poster = args.demo / 'demo.png'
    if not args.models and poster.is_file():
        small_copy(poster, args.out / 'demo.png')
    total = sum(path.stat().st_size for path in pictures.glob('*.png'))
    print(f'\n{page}, {total / 1e6:.2f} MB of pictures')


if __name__ == '__main__':
    main()
