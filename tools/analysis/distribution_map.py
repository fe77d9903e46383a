"""What each distribution of an MDRL bank stands for, from a checkpoint.

Each pixel belongs to the nearest distribution of its class. Writes

    maps.png              image, ground truth, class and distribution of each pixel
    class_NN_NAME.png     a class: its distributions in images, and the real pixels nearest to each
    usage.png             share of each distribution, dead and duplicate ones, entropy
    distribution_map.json all of these numbers

Example:
    python tools/analysis/distribution_map.py CONFIG CHECKPOINT --out work_dirs/map --draw 0 1 2 3
"""

import re
from heapq import nlargest
from operator import itemgetter

import numpy as np
import torch

from mmseg_cmdl.analysis import (
    DistributionUsage,
    NearestPatches,
    assign,
    chosen_classes,
    command_line,
    entropy,
)
from mmseg_cmdl.command_line import not_negative, number, tool, whole_number
from mmseg_cmdl.errors import InputError
from mmseg_cmdl.visualization import (
    MappedImage,
    draw_class,
    draw_distribution_maps,
    draw_usage,
    save_figure,
)
from mmseg_cmdl.visualization.style import resize_nearest


def parse_args(argv=None):
    parser = command_line.parser_of(__doc__, several=False)
    parser.add_argument(
        '--classes',
        nargs='+',
        metavar='CLASS',
        help='draw only these, by name or number (default: all)',
    )
    parser.add_argument(
        '--assign-by',
        choices=['labels', 'predictions'],
        default='labels',
        help='take the class of a pixel from these (default: %(default)s)',
    )
    parser.add_argument(
        '--draw',
        type=not_negative,
        nargs='+',
        metavar='INDEX',
        help='images in maps.png (default: the first four)',
    )
    parser.add_argument(
        '--patches',
        type=not_negative,
        default=4,
        help='nearest pixels shown of each distribution, each from another image '
        '(default: %(default)s)',
    )
    parser.add_argument(
        '--patch-size',
        type=whole_number(4),
        default=32,
        metavar='PIXELS',
        help='side of a patch (default: %(default)s)',
    )
    parser.add_argument(
        '--images-per-class',
        type=not_negative,
        default=3,
        metavar='N',
        help="images above a class's patches (default: %(default)s)",
    )
    parser.add_argument(
        '--dead-share',
        type=number(0),
        default=0.01,
        metavar='PART',
        help='a distribution is dead below this fraction of an equal share of pixels '
        '(default: %(default)s)',
    )
    parser.add_argument(
        '--duplicate-cosine',
        type=number(-1, 1),
        default=0.99,
        metavar='COSINE',
        help='smallest cosine of two duplicates (default: %(default)s)',
    )
    return command_line.parse(parser, argv)


def file_name(k, name):
    return f'class_{k:02d}_{re.sub("[^0-9A-Za-z-]+", "_", name)}.png'


@tool
def main(argv=None):
    args = parse_args(argv)
    (model,) = command_line.load_models(args)
    bank = model.bank('the distribution map')
    wanted = chosen_classes(args.classes, model.classes)
    num_classes, count, _ = bank.class_vectors().shape
    usage = DistributionUsage(bank.class_vectors(), args.dead_share, args.duplicate_cosine)
    nearest = NearestPatches(num_classes, count, args.patches, args.patch_size)
    best, drawn = {k: [] for k in wanted}, {}  # of each class the images with most of its pixels
    indices = command_line.image_indices(len(model.dataset), args.max_images)
    judged = set(indices)
    draw = list(dict.fromkeys(args.draw or range(min(4, len(model.dataset)))))
    outside = [i for i in draw if i >= len(model.dataset)]
    if outside:
        raise InputError(f'--draw {outside[0]}: the split has images 0 to {len(model.dataset) - 1}')
    by_prediction = args.assign_by == 'predictions'
    for example in command_line.progress(
        model.examples(
            [*indices, *(i for i in draw if i not in judged)],
            'embedding',
            predict=by_prediction,
        ),
        len({*indices, *draw}),
        'assigning pixels',
    ):
        classes = example.labels
        if by_prediction:
            found = resize_nearest(example.prediction, classes.shape).astype(np.int64)
            classes = torch.where(classes == 255, 255, torch.from_numpy(found))
        counted = example.index in judged
        # the images that are only drawn don't count
        assignment = (
            usage.add(example.features, classes)
            if counted
            else assign(example.features, classes, usage.distributions)
        )
        mapped = MappedImage(
            f'image {example.index}',
            example.image,
            example.truth,
            classes.numpy(),
            assignment.distributions.numpy().clip(0),
        )
        if example.index in draw:
            drawn[example.index] = mapped
        if counted:
            # many are held at once, and drawn small
            step = -(-max(example.image.shape[:2]) // 512)
            image = np.ascontiguousarray(example.image[::step, ::step])
            mapped = mapped._replace(image=image, truth=None)
            for k in wanted:
                pixels = int((mapped.classes == k).sum())
                if pixels:
                    best[k] = nlargest(
                        args.images_per_class, [*best[k], (pixels, mapped)], itemgetter(0)
                    )
            if args.patches:
                nearest.add(example.image, example.index, classes, assignment, example.stride)

    numbers = usage.numbers(model.classes)
    for k, name in enumerate(model.classes):
        numbers['classes'][name]['nearest_pixels'] = [
            [
                dict(image=p.image, position=p.position, similarity=p.similarity)
                for p in nearest.of(k, n)
            ]
            for n in range(count)
        ]
    numbers.update(model=model.name, assigned_by=args.assign_by, images=len(indices))
    written = [args.out / 'distribution_map.json']
    command_line.write_json(written[0], numbers)

    def save(figure, name):
        written.append(save_figure(figure, args.out / name))

    save(
        draw_distribution_maps([drawn[i] for i in draw], count, model.palette, model.classes),
        'maps.png',
    )
    per_class = list(numbers['classes'].values())
    save(
        draw_usage(
            usage.shares,
            entropy(usage.counts),
            np.array([c['nearest_distribution_accuracy'] for c in per_class]),
            usage.dead,
            usage.duplicates(),
            model.classes,
        ),
        'usage.png',
    )
    for k in command_line.progress(wanted, len(wanted), 'drawing classes'):
        name = model.classes[k]
        save(
            draw_class(
                name,
                k,
                [mapped for _, mapped in best[k]],
                usage.shares[k],
                np.array(per_class[k]['mean_similarity']),
                usage.dead[k],
                [[p.pixels for p in nearest.of(k, n)] for n in range(count)],
            ),
            file_name(k, name),
        )
    summary = command_line.plain(numbers['all'])
    print(
        f'{model.name}: {summary["pixels"]} pixels, entropy {summary["entropy"]}, '
        f'{summary["dead"]} dead and {summary["duplicates"]} duplicate distributions, nearest '
        f'distribution of the right class for {summary["nearest_distribution_accuracy"]}%'
    )
    print(*written, sep='\n')


if __name__ == '__main__':
    main()
