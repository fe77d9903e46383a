"""Data that can't be used ends a job with a message that names it.

- A split without images: mmengine's dataset ends in an error of NumPy that names nothing, or with
  `serialize_data=False` its InfiniteSampler looks for an index for ever. An empty split for
  validation shows only when the first interval has been trained.
- A file that can't be read: decoders say what is wrong with it, but mostly not which file it is.
"""

import os.path as osp
from collections import Counter
from typing import Iterator, Optional

from mmengine import fileio
from mmengine.dataset import BaseDataset, Compose
from mmengine.runner import Runner
from mmseg.registry import DATASETS


class FileNamingCompose(Compose):
    """A pipeline whose errors name the image and the annotation.

    Args:
        pipeline (Compose): What it does.
    """

    def __init__(self, pipeline: Compose):
        super().__init__(pipeline.transforms)

    def __call__(self, data: dict) -> Optional[dict]:
        """See the base class.

        Raises:
            ValueError: Whatever goes wrong in it.
        """
        image, annotation = data.get('img_path'), data.get('seg_map_path')
        for transform in self.transforms:
            try:
                data = transform(data)
            except Exception as error:
                name = getattr(type(transform), '__name__', 'a transform')
                remedy = (
                    'Fetch or convert the file that is meant again, or take it out of the split'
                    if name.startswith('Load')
                    else 'Look at the options of the transform, and whether image and annotation '
                    'belong together'
                )
                files = image if annotation is None else f'{image} (annotation {annotation})'
                raise ValueError(
                    f'{files} can not be used: {name}: {type(error).__name__}: {error}. {remedy}'
                ) from error
            if data is None:
                return None
        return data


def guard_data(runner: Runner, *splits: str) -> None:
    """Builds the datasets of a runner, refuses empty ones and has their errors name files.

    Datasets inside a wrapper (RepeatDataset, ConcatDataset, MultiImageMixDataset) are looked at one
    by one. Call it before `runner.train()` or `runner.test()`; tools/train.py and tools/test.py do.

    Args:
        runner (Runner): Whose data loaders haven't been built yet; those that have are left alone.
        *splits (str): Of 'train', 'val' and 'test'. One that the runner doesn't have is left out.

    Raises:
        SystemExit: If a split is empty; names its folders and split file, what lies there, and what
            to do.
    """
    for split in splits:
        # the public property would build the loop
        loader = getattr(runner, f'_{split}_dataloader', None)
        if not isinstance(loader, dict) or not isinstance(loader.get('dataset'), dict):
            continue
        loader['dataset'] = dataset = _built(loader['dataset'], split)
        for leaf in _leaves(dataset):
            _refuse_if_empty(leaf, split)
            if type(getattr(leaf, 'pipeline', None)) is Compose:
                leaf.pipeline = FileNamingCompose(leaf.pipeline)


def _built(config: dict, split: str):
    try:
        return DATASETS.build(config)
    except ValueError:  # NumPy's, from packing an empty list, or one that has more to say
        for part in _leaf_configs(config):
            dataset = DATASETS.build({**part, 'serialize_data': False})
            _refuse_if_empty(dataset, split)
        raise


def _leaf_configs(config: dict) -> Iterator[dict]:
    """Configs of the datasets that read files, without their wrappers."""
    if 'datasets' in config:
        for part in config['datasets']:
            yield from _leaf_configs(part)
    elif 'dataset' in config:
        yield from _leaf_configs(config['dataset'])
    else:
        yield config


def _leaves(dataset) -> Iterator:
    """Datasets that read files, without their wrappers."""
    if hasattr(dataset, 'datasets'):
        for part in dataset.datasets:
            yield from _leaves(part)
    elif hasattr(dataset, 'dataset'):
        yield from _leaves(dataset.dataset)
    else:
        yield dataset


def _refuse_if_empty(dataset, split: str) -> None:
    if not isinstance(dataset, BaseDataset):
        return  # its own affair
    dataset.full_init()
    if len(dataset) == 0:
        raise SystemExit(f'error: {_message(split, dataset)}')


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
        kinds = ', '.join(f'{count} {kind}' for kind, count in kinds.most_common(5))
        found = f' The folder holds {kinds or "no file"}.'
    return (
        f'{name} finds no image *{getattr(dataset, "img_suffix", "")} ({places}).{found} Set '
        f'data_root, data_prefix, img_suffix or ann_file of {split}_dataloader.dataset'
    )
