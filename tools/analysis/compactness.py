r"""How compact classes are in the feature space, and how far apart: the aim of the losses.

Over a split, for any number of models: variance inside each class (mean squared distance of its
pixels to its centre), that variance over the variance of all pixels, cosines of class centres and
their distances, and for MDRL heads the percentage of pixels whose nearest distribution is of their
own class. Features are brought to length 1 first, so that models can be compared; --raw leaves
their lengths. Writes compactness.png and compactness.json.

Example:
    python tools/analysis/compactness.py CONFIG_A CKPT_A CONFIG_B CKPT_B --names FCN MDRL \
        --out work_dirs/compactness
"""

import numpy as np

from mmseg_cmdl.analysis import DistributionUsage, command_line, measure_statistics
from mmseg_cmdl.command_line import text_table, tool
from mmseg_cmdl.visualization import draw_class_bars, save_figure

COLUMNS = dict(
    intra_class_variance='variance inside class',
    relative_variance='of all variance',
    center_similarity='cosine of centres',
    largest_center_similarity='largest',
    center_distance='distance of centres',
    nearest_center_distance='to the nearest',
    separation='separation',
    nearest_distribution_accuracy='nearest distribution, %',
)


def parse_args(argv=None):
    parser = command_line.parser_of(__doc__, features='classifier')
    parser.add_argument(
        '--raw', action='store_true', help="leave the features' lengths as they are"
    )
    return command_line.parse(parser, argv)


def nearest_without_diagonal(distances):
    """Distance of each class to the nearest other one; NaN where there is none."""
    distances = distances.copy()
    np.fill_diagonal(distances, np.inf)
    nearest = np.where(np.isnan(distances), np.inf, distances).min(axis=1)
    return np.where(np.isfinite(nearest), nearest, np.nan)


def measure(model, args):
    """Statistics of the classes, and of a model that has distributions their use, else None.

    The use is of the embeddings, whatever the other numbers are of: of another pass where those are
    not of embeddings.
    """
    usage = None
    if model.memory is not None and model.memory.class_vectors().shape[1] > 1:
        usage = DistributionUsage(model.memory.class_vectors())
    together = usage if args.features == 'embedding' else None
    statistics = measure_statistics(
        model, args.features, not args.raw, args.max_images, also=together
    )
    if usage is not None and together is None:
        indices = command_line.image_indices(len(model.dataset), args.max_images)
        examples = model.examples(indices, 'embedding')
        for example in command_line.progress(examples, len(indices), f'{model.name}, embeddings'):
            usage.add(example.features, example.labels)
    return statistics, usage


@tool
def main(argv=None):
    args = parse_args(argv)
    numbers, variance, nearest, accuracy = {}, {}, {}, {}
    for model in command_line.load_models(args):
        name, classes = model.name, model.classes
        statistics, usage = measure(model, args)
        distances = statistics.center_distances
        variance[name] = statistics.intra_class_variance
        nearest[name] = nearest_without_diagonal(distances)
        by_class = {
            c: dict(
                pixels=int(statistics.counts[k]),
                intra_class_variance=variance[name][k],
                nearest_center_distance=nearest[name][k],
            )
            for k, c in enumerate(classes)
        }
        numbers[name] = dict(all=statistics.summary(), classes=by_class, center_distances=distances)
        if usage is not None:
            found = usage.numbers(classes)
            key = 'nearest_distribution_accuracy'
            accuracy[name] = np.array([c[key] for c in found['classes'].values()])
            numbers[name]['all'].update(
                {key: found['all'][key], 'entropy': found['all']['entropy']}
            )
            for k, c in enumerate(classes):
                by_class[c][key] = accuracy[name][k]

    written = [args.out / 'compactness.json', args.out / 'compactness.png']
    command_line.write_json(
        written[0],
        dict(models=numbers, features=args.features, normalized=not args.raw, split=args.split),
    )
    panels = {
        'variance inside the class': variance,
        'distance to the nearest\nother class': nearest,
    }
    if accuracy:
        panels['nearest distribution is of\nthe right class, %'] = accuracy
    save_figure(draw_class_bars(panels, classes, [False, True, True]), written[1])

    shown = [
        key
        for key in COLUMNS
        if any(found['all'].get(key) is not None for found in numbers.values())
    ]
    rows = []
    for name, found in numbers.items():
        values = (found['all'].get(key) for key in shown)
        rows.append([name, *('-' if v is None else f'{v:.4g}' for v in values)])
    print(text_table(['model', *(COLUMNS[key] for key in shown)], rows))
    print(*written, sep='\n')


if __name__ == '__main__':
    main()
