"""Bring LIP or CIHP to the layout of LIPDataset and CIHPDataset.

    python tools/dataset_converters/lip.py DOWNLOADS/LIP  -o data/lip
    python tools/dataset_converters/lip.py DOWNLOADS/instance-level_human_parsing -o data/cihp

The source is the unpacked download, recognised by its folders:

- LIP (single person): `train_images`, `val_images`, `train_segmentations`, `val_segmentations`, at
  any depth (the archives nest them in folders of several names).
- CIHP: `Training` and `Validation`, each with `Images` and `Category_ids`.

Both become `images/{train,val}/*.jpg` and `annotations/{train,val}/*.png`, one id of 0 to 19 a
pixel. Annotations are checked and copied as they are; images are copied, or linked with --link.
Everything is prepared in a hidden folder beside and moved into place at the end, so an error or an
interruption leaves what was there before.
"""

import argparse
import os
import shutil
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from mmseg_cmdl.command_line import positive, tool, with_progress
from mmseg_cmdl.errors import InputError
from mmseg_cmdl.written_files import refuse_existing, refuse_inside, replaced_folders

NUM_CLASSES = 20
SPLITS = ('train', 'val')
SIZES = {'lip': {'train': 30462, 'val': 10000}, 'cihp': {'train': 28280, 'val': 5000}}
FOLDERS = ('images', 'annotations')


def find_folders(source):
    """Where images and annotations of each split are.

    Returns:
        tuple[str, dict[str, tuple[Path, Path]]]: 'lip' or 'cihp', and split to the two folders.

    Raises:
        InputError: The source has neither layout, or has a folder twice.
    """
    wanted = {
        'lip': {split: (f'{split}_images', f'{split}_segmentations') for split in SPLITS},
        'cihp': {
            split: (f'{name}/Images', f'{name}/Category_ids')
            for split, name in zip(SPLITS, ('Training', 'Validation'))
        },
    }
    if not source.is_dir():
        raise InputError(f'{source} is no folder')
    folders = [source, *(Path(path) / name for path, names, _ in os.walk(source) for name in names)]

    def matches(tail):
        parts = Path(tail).parts
        return [
            folder
            for folder in folders
            if folder.parts[-len(parts) :] == parts
            and any(path.is_file() for path in folder.iterdir())
        ]

    for name, splits in wanted.items():
        found = {split: [matches(tail) for tail in tails] for split, tails in splits.items()}
        lists = [paths for pair in found.values() for paths in pair]
        if not all(lists):
            continue
        for paths in lists:
            if len(paths) > 1:
                raise InputError(
                    f'{paths[0]} and {paths[1]} could both be meant; give the folder of one of them'
                )
        return name, {split: tuple(paths[0] for paths in pair) for split, pair in found.items()}
    raise InputError(
        f'{source} holds neither LIP (folders train_images, val_images, train_segmentations, '
        'val_segmentations) nor CIHP (Training/Images, Training/Category_ids, Validation/Images, '
        'Validation/Category_ids); unpack the archives there'
    )


def list_pairs(name, folders, allow_partial):
    """Every image with its annotation.

    Returns:
        list[tuple[str, Path, Path]]: Split, image, annotation.

    Raises:
        InputError: Something is missing and `allow_partial` isn't given.
    """
    pairs = []
    for split, (image_folder, label_folder) in folders.items():
        images = {path.stem: path for path in sorted(image_folder.glob('*.jpg'))}
        labels = {path.stem: path for path in sorted(label_folder.glob('*.png'))}
        alone = sorted(set(images) ^ set(labels))
        if alone and not allow_partial:
            have, lack = (
                (image_folder, label_folder) if alone[0] in images else (label_folder, image_folder)
            )
            raise InputError(
                f'{len(alone)} names are in one folder only, the first is '
                f'{alone[0]} in {have} and not in {lack}; unpack the archives '
                'again, or pass --allow-partial to go on without'
            )
        both = sorted(set(images) & set(labels))
        expected = SIZES[name][split]
        if len(both) != expected and not allow_partial:
            raise InputError(
                f'{image_folder} has {len(both)} images with annotations, and '
                f'{name.upper()} has {expected}; unpack the archives again, or '
                'pass --allow-partial'
            )
        pairs += [(split, images[stem], labels[stem]) for stem in both]
    if not pairs:
        raise InputError('not one image has an annotation; check the folder')
    return pairs


def convert_pair(pair, staging=None, link=False):
    """Check one image and its annotation; write them where `staging` is given.

    Returns:
        np.ndarray: Pixels of each id, [20].

    Raises:
        InputError: The annotation isn't one id of 0 to 19 a pixel of the image.
    """
    split, image_path, label_path = pair
    try:
        with Image.open(label_path) as image:
            mode, ids = image.mode, np.asarray(image)
        with Image.open(image_path) as image:
            size = image.size
    except OSError as error:
        raise InputError(
            f"{label_path} or {image_path} can't be read ({error}); unpack the archives again"
        ) from error
    if mode not in ('L', 'P'):
        raise InputError(
            f'{label_path} is a {mode} image, not one class id a pixel; take the '
            'folder of class ids, not that of colours'
        )
    if size != ids.shape[::-1]:
        raise InputError(
            '{} is {}x{}, its annotation {} {}x{}; take both from the same place'.format(
                image_path, *size, label_path, *ids.shape[::-1]
            )
        )
    counts = np.bincount(ids.ravel(), minlength=256)
    if counts[NUM_CLASSES:].any():
        wrong = np.flatnonzero(counts[NUM_CLASSES:]) + NUM_CLASSES
        raise InputError(
            f'{label_path} holds the ids {wrong[:8].tolist()}, and only 0 to '
            f'{NUM_CLASSES - 1} are known; take the folder of class ids, not '
            'that of instances'
        )
    if staging is not None:
        target = staging / 'images' / split / image_path.name
        if link:
            target.symlink_to(image_path.resolve())
        else:
            shutil.copyfile(image_path, target)
        shutil.copyfile(label_path, staging / 'annotations' / split / label_path.name)
    return counts[:NUM_CLASSES]


def convert(
    source, out_dir, link=False, dry_run=False, overwrite=False, allow_partial=False, nproc=1
):
    """Convert LIP or CIHP; see the module.

    Returns:
        tuple[str, int, np.ndarray]: 'lip' or 'cihp', number of images, pixels of each id [20].

    Raises:
        InputError: Nothing has been changed.
    """
    if not (overwrite or dry_run):
        refuse_existing(out_dir, FOLDERS)
    name, folders = find_folders(source)
    if not dry_run:
        refuse_inside([path for pair in folders.values() for path in pair], out_dir, FOLDERS)
    pairs = list_pairs(name, folders, allow_partial)
    place = nullcontext() if dry_run else replaced_folders(out_dir, FOLDERS, SPLITS)
    with place as staging:
        counts = with_progress(partial(convert_pair, staging=staging, link=link), pairs, nproc)
    return name, len(pairs), sum(counts)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', type=Path, help='folder of the unpacked download')
    parser.add_argument(
        '-o',
        '--out-dir',
        type=Path,
        required=True,
        help='gets images and annotations: data/lip or data/cihp',
    )
    parser.add_argument('--link', action='store_true', help='link the images, copy nothing of them')
    parser.add_argument('--dry-run', action='store_true', help='read and check, write nothing')
    parser.add_argument('--overwrite', action='store_true', help='replace folders that are there')
    parser.add_argument(
        '--allow-partial', action='store_true', help='go on where images or annotations are missing'
    )
    parser.add_argument('--nproc', type=positive, default=4, help='processes (default: 4)')
    return parser.parse_args(argv)


@tool
def main(argv=None):
    args = parse_args(argv)
    name, number, pixels = convert(**vars(args))
    print(
        f'\n{name.upper()}: {number} images {"checked" if args.dry_run else "in"} '
        f'{args.source if args.dry_run else args.out_dir}'
    )
    absent = np.flatnonzero(pixels == 0).tolist()
    if absent:
        print(f'ids without a pixel: {absent}')


if __name__ == '__main__':
    main()
