r"""Feature space (MDRL, fig. 1; MCIBI, fig. 3): pixels of chosen classes in the plane, by t-SNE.

Draws an even sample of the pixels of each class (with --points means, as MCIBI's figure has it, of
the mean vectors of each class in an image), reduces it by PCA and t-SNE (or UMAP, if
umap-learn is installed), and draws a panel for each model. With --features embedding the
distributions of an MDRL head's bank are drawn in. Writes feature_space.png, feature_space.npz
(points, labels, places of each panel) and feature_space.json (silhouette of the classes in the full
space). Needs scikit-learn.

Example:
    python tools/analysis/feature_space.py FCN_CONFIG FCN_CKPT MDRL_CONFIG MDRL_CKPT \
        --classes road car --out work_dirs/space
"""

import numpy as np

from mmseg_cmdl.analysis import MeanSample, PixelSample, chosen_classes, command_line, embed_sample
from mmseg_cmdl.analysis.feature_space import METHODS, check_method
from mmseg_cmdl.command_line import number, positive, tool
from mmseg_cmdl.visualization import draw_feature_space, save_figure

SAMPLES = dict(pixels=PixelSample, means=MeanSample)


def parse_args(argv=None):
    parser = command_line.parser_of(__doc__)
    parser.add_argument(
        '--features',
        choices=['auto', 'classifier', 'embedding', 'backbone'],
        default='auto',
        help='embedding: the unit vectors compared with the distributions, which are '
        'drawn in; classifier: what enters conv_seg; backbone: the feature map that '
        'the head selects; auto: embedding where there is one, else classifier '
        '(default: %(default)s)',
    )
    parser.add_argument(
        '--classes', nargs='+', metavar='CLASS', help='by name or number (default: all)'
    )
    parser.add_argument(
        '--points',
        choices=SAMPLES,
        default='pixels',
        help='what is drawn: pixels, or one mean vector for each class and image (default: '
        '%(default)s)',
    )
    parser.add_argument(
        '--pixels',
        type=positive,
        default=300,
        help='points of each class at most (default: %(default)s)',
    )
    parser.add_argument('--method', choices=METHODS, default='tsne', help='(default: %(default)s)')
    parser.add_argument(
        '--perplexity',
        type=number(1),
        default=30,
        help='of t-SNE, or neighbours of UMAP (default: %(default)s)',
    )
    parser.add_argument(
        '--raw', action='store_true', help='leave the lengths of features as they are instead of 1'
    )
    return command_line.parse(parser, argv)


@tool
def main(argv=None):
    args = parse_args(argv)
    check_method(args.method)
    panels, numbers, arrays = {}, {}, {}
    for model in command_line.load_models(args):
        kind = args.features
        if kind == 'auto':
            kind = 'classifier' if model.memory is None else 'embedding'
        wanted = chosen_classes(args.classes, model.classes)
        sample = SAMPLES[args.points](wanted, args.pixels, args.seed)
        indices = command_line.image_indices(len(model.dataset), args.max_images)
        for example in command_line.progress(
            model.examples(indices, kind), len(indices), f'sampling {model.name}'
        ):
            sample.add(example.index, example.features, example.labels)
        print(f'{model.name}: {args.method} of the sampled {args.points} ...', flush=True)
        bank = model.memory.class_vectors() if kind == 'embedding' and model.memory else None
        embedded = embed_sample(sample, bank, not args.raw, args.method, args.seed, args.perplexity)
        panels[f'{model.name}, {kind}'] = embedded  # models may differ in their space
        numbers[model.name] = dict(
            features=kind,
            silhouette=embedded.silhouette,
            sampled={model.classes[k]: int((embedded.labels == k).sum()) for k in wanted},
            **{args.points: {model.classes[k]: sample.seen[k] for k in wanted}},
        )
        number = len(numbers) - 1
        for key in ('points', 'labels', 'places', 'distributions', 'distribution_labels'):
            value = getattr(embedded, key)
            if value is not None:
                arrays[f'{number}_{key}'] = value
        score = 'none' if embedded.silhouette is None else f'{embedded.silhouette:.3f}'
        print(f'{model.name}: silhouette of the classes in the space of {kind} {score}')
    written = [args.out / f'feature_space.{kind}' for kind in ('png', 'npz', 'json')]
    save_figure(draw_feature_space(panels, model.classes, args.method), written[0])
    command_line.write_arrays(written[1], names=np.array(list(numbers)), **arrays)
    command_line.write_json(
        written[2],
        dict(
            models=numbers,
            points=args.points,
            method=args.method,
            seed=args.seed,
            perplexity=args.perplexity,
            normalized=not args.raw,
            split=args.split,
        ),
    )
    print(*written, sep='\n')


if __name__ == '__main__':
    main()
