r"""Predictions of any number of models side by side (MDRL, fig. 4 and 5).

Scores every image of the split, then shows the worst and the best cases with image, ground truth,
predictions and error maps. Writes

    predictions.html   one page with everything in it; opens offline, can be sorted
    predictions.png    the first rows of it
    predictions.json   mean IoU and pixel accuracy of every image and model

Example:
    python tools/analysis/compare_predictions.py CONFIG_A CKPT_A CONFIG_B CKPT_B --names FCN MDRL \
        --out work_dirs/predictions --sort gain
"""

import os

import numpy as np

from mmseg_cmdl.analysis import (
    class_iou,
    command_line,
    confusion_matrix,
    mean_iou,
    pixel_accuracy,
)
from mmseg_cmdl.command_line import not_negative, positive, text_table, tool
from mmseg_cmdl.errors import InputError
from mmseg_cmdl.visualization import (
    PredictedImage,
    draw_predictions,
    prediction_page,
    save_figure,
)


def parse_args(argv=None):
    parser = command_line.parser_of(__doc__)
    parser.add_argument(
        '--sort',
        choices=['score', 'gain'],
        default='score',
        help="what makes a case bad or good: the last model's mean IoU of the image "
        '(score), or how far it is above that of the first model (gain); default: '
        '%(default)s',
    )
    parser.add_argument(
        '--worst', type=not_negative, default=10, help='cases shown (default: %(default)s)'
    )
    parser.add_argument(
        '--best', type=not_negative, default=10, help='cases shown (default: %(default)s)'
    )
    parser.add_argument(
        '--show',
        type=not_negative,
        nargs='+',
        metavar='INDEX',
        help='show these images instead of the worst and best',
    )
    parser.add_argument(
        '--rows', type=positive, default=4, help='images in predictions.png (default: %(default)s)'
    )
    args = command_line.parse(parser, argv)
    if not (args.worst + args.best or args.show):
        parser.error('--worst and --best must not both be 0')
    if args.sort == 'gain' and len(args.models) < 2:
        parser.error('--sort gain compares the last model with the first; give two models')
    return args


def choose(values, indices, worst, best):
    """Images from worst to best, each once: `worst` from below, then `best` from above."""
    known = [i for i in indices if values[i] is not None]
    ranked = sorted(known, key=lambda i: (values[i], i))
    low = ranked[:worst]
    high = [i for i in ranked[::-1] if i not in low][:best]
    return low + high, len(low)


def score(model, indices, extra):
    """Confusion matrix of the split, and mean IoU and pixel accuracy of each image.

    Images in `extra` are scored for themselves only.
    """
    total, found = 0, {}
    for example in command_line.progress(
        model.examples([*indices, *extra], predict=True),
        len(indices) + len(extra),
        f'scoring {model.name}',
    ):
        confusion = confusion_matrix(example.truth, example.prediction, len(model.classes))
        if example.index not in extra:
            total = total + confusion
        found[example.index] = dict(
            path=example.path, mIoU=mean_iou(confusion), aAcc=pixel_accuracy(confusion)
        )
    return total, found


@tool
def main(argv=None):
    args = parse_args(argv)
    models = list(command_line.load_models(args))
    lengths = {len(model.dataset) for model in models}
    if len(lengths) > 1:
        raise InputError(
            f'the splits of the models have {sorted(lengths)} images; give all '
            'of them the same data, by --cfg-options perhaps'
        )
    indices = command_line.image_indices(lengths.pop(), args.max_images)
    extra = sorted(set(args.show or ()) - set(indices))
    wanted = [*indices, *extra]
    totals, per_image = {}, {}
    for model in models:
        confusion, per_image[model.name] = score(model, indices, extra)
        totals[model.name] = dict(
            mIoU=mean_iou(confusion),
            aAcc=pixel_accuracy(confusion),
            IoU=dict(zip(model.classes, class_iou(confusion))),
        )
    for i in wanted:
        paths = {found[i]['path'] for found in per_image.values()}
        if len({os.path.basename(path) for path in paths}) > 1:
            raise InputError(f'image {i} is another one for each model: {sorted(paths)}')

    first, last = (per_image[models[i].name] for i in (0, -1))
    values = {i: last[i]['mIoU'] for i in wanted}
    if args.sort == 'gain':
        values = {i: None if v is None else v - first[i]['mIoU'] for i, v in values.items()}
    shown, low = (args.show, 0) if args.show else choose(values, wanted, args.worst, args.best)
    if not shown:
        raise InputError('no image of the split has a labelled pixel')
    cases = []
    for i in command_line.progress(shown, len(shown), 'drawing'):
        examples = {model.name: model.example(i, predict=True) for model in models}
        example = examples[models[0].name]
        for name, other in examples.items():
            if other.truth.shape != example.truth.shape:
                raise InputError(
                    f'image {i} has another size for {name}; give configs with the same images'
                )
        cases.append(
            PredictedImage(
                i,
                example.path,
                example.image,
                example.truth.astype(np.uint16),  # all cases are held at once
                {name: e.prediction.astype(np.uint16) for name, e in examples.items()},
                {name: per_image[name][i]['mIoU'] for name in examples},
            )
        )

    written = [args.out / f'predictions.{kind}' for kind in ('html', 'png', 'json')]
    what = (
        f'gain of {models[-1].name} over {models[0].name}'
        if args.sort == 'gain'
        else f'mean IoU of {models[-1].name}'
    )
    note = (
        'The images that were asked for.'
        if args.show
        else f'The {low} worst and the {len(shown) - low} best of {len(wanted)} images by {what}. '
        'The mean IoU of an image is over the classes that are labelled or predicted in it.'
    )
    command_line.write_text(
        written[0],
        prediction_page(
            cases,
            models[0].palette,
            models[0].classes,
            totals,
            'Predictions: ' + ', '.join(totals),
            note,
        ),
    )
    rows = cases
    if not args.show and len(cases) > args.rows:  # some of both ends
        half = min(low, max(args.rows - (len(cases) - low), (args.rows + 1) // 2))
        rows = cases[:half] + cases[low : low + args.rows - half]
    save_figure(
        draw_predictions(rows[: args.rows], models[0].palette, models[0].classes), written[1]
    )
    command_line.write_json(
        written[2],
        dict(
            split=args.split,
            totals=totals,
            worst=shown[:low],
            best=shown[low:],
            images=[
                dict(
                    index=i,
                    path=first[i]['path'],
                    **{
                        name: {key: found[i][key] for key in ('mIoU', 'aAcc')}
                        for name, found in per_image.items()
                    },
                )
                for i in wanted
            ],
        ),
    )

    rows = []
    for name, found in totals.items():
        of_images = [v['mIoU'] for v in per_image[name].values() if v['mIoU'] is not None]
        values = found['mIoU'], found['aAcc'], np.mean(of_images)
        rows.append([name, *(f'{value:.2f}' for value in values)])
    print(text_table(['model', 'mIoU', 'aAcc', 'mean of image mIoU'], rows))
    print(*written, sep='\n')


if __name__ == '__main__':
    main()
