r"""Pixel relation map (CAR, fig. 5): how similar every pixel of an image is to one that you name.

Name it by its place (--pixel X Y, in pixels of the image as the model sees it; may be repeated), by
a class (--pixel-of CLASS, the pixel of that class farthest from its border), or click on it
(--click, needs a display). Writes pixel_relation.png and pixel_relation.npz.

Example:
    python tools/analysis/pixel_relation.py CONFIG CKPT CAR_CONFIG CAR_CKPT --image 12 \
        --pixel-of car --pixel 40 90 --out work_dirs/relation
"""

import cv2
import numpy as np

from mmseg_cmdl.analysis import chosen_classes, command_line, feature_at, pixel_relation
from mmseg_cmdl.command_line import not_negative, tool
from mmseg_cmdl.errors import InputError
from mmseg_cmdl.visualization import draw_pixel_relation, save_figure


def parse_args(argv=None):
    parser = command_line.parser_of(__doc__, features='classifier', images=False)
    parser.add_argument(
        '--image',
        type=not_negative,
        default=0,
        metavar='INDEX',
        help='image of the split (default: %(default)s)',
    )
    parser.add_argument(
        '--pixel',
        type=not_negative,
        nargs=2,
        action='append',
        default=[],
        metavar=('X', 'Y'),
        help='column and row; may be repeated',
    )
    parser.add_argument(
        '--pixel-of',
        nargs='+',
        default=[],
        metavar='CLASS',
        help='a pixel inside a region of that class, by name or number',
    )
    parser.add_argument('--click', action='store_true', help='choose a pixel in a window')
    parser.add_argument(
        '--similarity', choices=['cosine', 'dot'], default='cosine', help='(default: %(default)s)'
    )
    args = command_line.parse(parser, argv)
    if not (args.pixel or args.pixel_of or args.click):
        parser.error('name a pixel: --pixel X Y, --pixel-of CLASS or --click')
    return args


def deepest_pixel(mask):
    """Row and column of the pixel of a mask that is farthest from its border."""
    inside = np.pad(mask, 1).astype(np.uint8)
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, 5)[1:-1, 1:-1]
    return tuple(int(x) for x in np.unravel_index(distance.argmax(), mask.shape))


def clicked_pixel(image):
    """Row and column of a click."""
    import matplotlib
    from matplotlib import pyplot as plt

    if matplotlib.get_backend().lower() == 'agg':
        raise InputError('--click needs a display, and matplotlib has none; use --pixel X Y')
    plt.imshow(image)
    plt.title('click on a pixel')
    points = plt.ginput(1, timeout=0)
    plt.close()
    if not points:
        raise InputError('no pixel was clicked')
    return round(points[0][1]), round(points[0][0])


def chosen_pixels(args, example, classes):
    """(row, column) in the image and a title, of each pixel that was named."""
    h, w = example.image.shape[:2]
    out = [((y, x), f'x={x}, y={y}') for x, y in args.pixel]
    for k in chosen_classes(args.pixel_of, classes) if args.pixel_of else []:
        mask = example.truth == k
        if not mask.any():
            present = [classes[i] for i in np.unique(example.truth) if i < len(classes)]
            raise InputError(
                f'image {example.index} has no {classes[k]}; it has: {", ".join(present)}'
            )
        y, x = deepest_pixel(mask)
        y, x = y * h // mask.shape[0], x * w // mask.shape[1]
        out.append(((y, x), f'{classes[k]}, x={x}, y={y}'))
    if args.click:
        y, x = clicked_pixel(example.image)
        out.append(((y, x), f'x={x}, y={y}'))
    return out


@tool
def main(argv=None):
    args = parse_args(argv)
    rows, arrays, image = [], {}, None
    for number, model in enumerate(
        command_line.progress(command_line.load_models(args), len(args.models), 'relating pixels')
    ):
        example = model.example(args.image, args.features, predict=True)
        if image is None:
            image, palette, classes = example.image, model.palette, model.classes
            pixels = chosen_pixels(args, example, classes)
            rows = [(position, title, {}) for position, title in pixels]
        elif example.image.shape != image.shape:
            raise InputError(
                f'{model.name} sees image {args.image} at another size than '
                f'{args.names[0]}; give both the same pipeline by --cfg-options'
            )
        size = example.features.shape[:2]
        covered = tuple(n * s for n, s in zip(size, example.stride))
        for i, (position, _, found) in enumerate(rows):
            place = feature_at(position, image.shape[:2], size, example.stride)
            heat = pixel_relation(example.features, place, args.similarity).numpy()
            found[model.name] = heat, covered, example.prediction
            arrays[f'{number}_{i}'] = heat
            same = (example.labels == example.labels[place]).numpy()
            labelled = (example.labels != 255).numpy()
            if same[place] and labelled[place]:
                inside, outside = heat[same & labelled], heat[~same & labelled]
                print(
                    f'{model.name}, {rows[i][1]}: mean {args.similarity} '
                    f'{inside.mean():.3f} with its class, '
                    + (f'{outside.mean():.3f} with others' if outside.size else 'no others')
                )
    written = [args.out / 'pixel_relation.png', args.out / 'pixel_relation.npz']
    save_figure(draw_pixel_relation(image, rows, palette, classes, args.similarity), written[0])
    command_line.write_arrays(
        written[1],
        names=np.array(args.names),
        image=np.array(args.image),
        pixels=np.array([row[0] for row in rows]),
        **arrays,
    )
    print(*written, sep='\n')


if __name__ == '__main__':
    main()
