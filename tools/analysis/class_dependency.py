r"""Class dependency map (CAR, fig. 4): how similar the centres of the classes are.

Centres are means over all pixels of a class in the split. A cell is the cosine of two centres, or
with --similarity softmax what CAR's loss between centres uses (the softmax over classes of their
products by sqrt(C)), or their plain product (dot). For cosines, features are brought to length 1
first, as compactness.py does, and the mean over pairs is its cosine of centres; --raw leaves
their lengths. Two models also give their difference. Writes class_dependency.png and
class_dependency.json.

Example:
    python tools/analysis/class_dependency.py CONFIG CKPT CAR_CONFIG CAR_CKPT \
        --names 'without CAR' 'with CAR' --out work_dirs/dependency
"""

from mmseg_cmdl.analysis import (
    chosen_classes,
    command_line,
    measure_statistics,
    off_diagonal_mean,
)
from mmseg_cmdl.analysis.class_statistics import SIMILARITIES
from mmseg_cmdl.command_line import tool
from mmseg_cmdl.visualization import draw_class_dependency, save_figure

TITLES = dict(
    cosine='cosine of class centres',
    dot='product of class centres',
    softmax='softmax over classes of the products of class centres by √C',
)


def parse_args(argv=None):
    parser = command_line.parser_of(__doc__, features='classifier')
    parser.add_argument(
        '--similarity',
        choices=SIMILARITIES,
        default='cosine',
        help='measure of similarity (default: %(default)s)',
    )
    parser.add_argument(
        '--classes',
        nargs='+',
        metavar='CLASS',
        help='draw only these, by name or number (default: all)',
    )
    parser.add_argument(
        '--raw', action='store_true', help="leave the features' lengths as they are"
    )
    return command_line.parse(parser, argv)


@tool
def main(argv=None):
    args = parse_args(argv)
    matrices, numbers = {}, {}
    # a product of centres, and so CAR's loss between them, is about the lengths too
    normalize = args.similarity == 'cosine' and not args.raw
    for model in command_line.load_models(args):
        statistics = measure_statistics(model, args.features, normalize, args.max_images)
        matrices[model.name] = statistics.similarity(args.similarity)
        numbers[model.name] = dict(
            similarity=matrices[model.name],
            pixels=statistics.counts,
            off_diagonal_mean=off_diagonal_mean(matrices[model.name]),
        )
        print(
            f'{model.name}: mean {args.similarity} between different classes '
            f'{numbers[model.name]["off_diagonal_mean"]}'
        )
        classes = model.classes
    written = [args.out / 'class_dependency.json', args.out / 'class_dependency.png']
    command_line.write_json(
        written[0],
        dict(
            models=numbers,
            classes=classes,
            kind=args.similarity,
            normalized=normalize,
            features=args.features,
            split=args.split,
        ),
    )
    wanted = chosen_classes(args.classes, classes)
    figure = draw_class_dependency(
        {name: matrix[wanted][:, wanted] for name, matrix in matrices.items()},
        [classes[k] for k in wanted],
        TITLES[args.similarity],
        [
            '' if found['off_diagonal_mean'] is None else f'mean {found["off_diagonal_mean"]:.3f}'
            for found in numbers.values()
        ],
    )
    save_figure(figure, written[1])
    print(*written, sep='\n')


if __name__ == '__main__':
    main()
