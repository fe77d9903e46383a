"""Datasets that are built and not empty, and whose errors name their files.

mmengine builds an empty one with an error of NumPy that names nothing, or with
`serialize_data=False` without one, and then its InfiniteSampler never ends.
"""

import os
import os.path as osp
from collections import Counter
from typing import Any, Iterator

from mmengine import fileio
from mmengine.dataset import BaseDataset, Compose
from mmseg.registry import DATASETS

from .sample_guard import DataError, FileNamingCompose


def build_dataset(config: dict, split: str) -> Any:
    """Builds the dataset of a split, with the wrappers around it.

    Args:
        config (dict): Of the dataset.
        split (str): 'train', 'val' or 'test', for messages.

    Raises:
        DataError: A folder is missing or has no image that fits; names them, and what to set. What
            goes wrong in the pipeline later names image and annotation.
    """
    try:
        dataset = DATASETS.build(config)
    except FileNotFoundError as error:
        if error.filename is None:  # a dataset's own sentence
            raise
        raise DataError(
            f'{error.filename} is not there, where images of the {split} split are looked for. '
            f'Set data_root or data_prefix.img_path of {split}_dataloader.dataset; relative paths '
            f'start at {os.getcwd()}'
        ) from error
    except ValueError:  # NumPy's, from packing an empty list, or one that has more to say
        for part in leaves(config):
            try:
                dataset = DATASETS.build({**part, 'serialize_data': False})
            except Exception:
                continue  # the first error says what is wrong
            _refuse_if_empty(dataset, split)
        raise
    for leaf in leaves(dataset):
        _refuse_if_empty(leaf, split)
        if type(getattr(leaf, 'pipeline', None)) is Compose:
            leaf.pipeline = FileNamingCompose(leaf.pipeline)
    return dataset


def leaves(dataset: Any) -> Iterator:
    """Datasets that read files, or the configs of such, without their wrappers."""

    def part(name: str) -> Any:
        return dataset.get(name) if isinstance(dataset, dict) else getattr(dataset, name, None)

    parts = part('datasets') or [part('dataset')]
    if parts == [None]:
        yield dataset
        return
    for inner in parts:
        yield from leaves(inner)


def _refuse_if_empty(dataset: Any, split: str) -> None:
    if not isinstance(dataset, BaseDataset):
        return  # its own affair
    dataset.full_init()
    if len(dataset) == 0:
        raise DataError(_message(split, dataset))


def _message(split: str, dataset: BaseDataset) -> str:
    """Where images were looked for, and what is there instead."""
    name = f'the {split} split is empty: {type(dataset).__name__}'
    prefix = dataset.data_prefix
    folder, annotations = prefix.get('img_path'), prefix.get('seg_map_path')
    ann_file = dataset.ann_file
    places = f'images in {folder!r}, annotations in {annotations!r}, split file {ann_file!r}'
    if dataset.load_data_list():
        return f'{name} leaves out every image by its filter_cfg or indices ({places})'
    if ann_file and osp.isfile(ann_file):
        return (
            f'{name} finds no name in {ann_file} ({places}); it needs one line an image, the path '
            'below the image folder without suffix'
        )
    found = ''
    if folder and fileio.isdir(folder):
        files = fileio.list_dir_or_file(folder, list_dir=False, recursive=True)
        kinds = Counter(osp.splitext(path)[1] or 'without suffix' for path in files)
        listed = ', '.join(f'{count} {kind}' for kind, count in kinds.most_common(5))
        found = f' The folder holds {listed or "no file"}.'
    return (
        f'{name} finds no image *{getattr(dataset, "img_suffix", "")} ({places}).{found} Set '
        f'data_root, data_prefix, img_suffix or ann_file of {split}_dataloader.dataset'
    )
