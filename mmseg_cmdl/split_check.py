"""A split without images is noticed before anything is trained.

mmengine's dataset ends in an error of NumPy that names nothing, or with `serialize_data=False` the
InfiniteSampler looks for an index for ever; an empty split for validation shows when the first
interval has been trained.
"""

import os.path as osp
from collections import Counter
from typing import Iterator

from mmengine import fileio
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DefaultScope
from mmseg.registry import DATASETS


def check_splits(cfg: Config, *splits: str) -> None:
    """Looks for the images of every dataset that the config has for these splits.

    Datasets inside a wrapper (RepeatDataset, ConcatDataset, MultiImageMixDataset) are looked at one
    by one. A dataset class that isn't built on mmengine's is left alone.

    Args:
        cfg (Config): Config of a job.
        *splits (str): Of 'train', 'val' and 'test'. One that the config doesn't have is left out.

    Raises:
        SystemExit: If a split is empty; names its folders and split file, what lies there, and what
            to do.
    """
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmseg'):
        for split in splits:
            loader = cfg.get(f'{split}_dataloader') or {}
            for dataset_cfg in _leaves(loader.get('dataset')):
                cls = dataset_cfg['type']
                cls = DATASETS.get(cls) if isinstance(cls, str) else cls
                if cls is None or not issubclass(cls, BaseDataset):
                    continue  # the Runner says what is wrong with the name
                dataset = DATASETS.build({**dataset_cfg, 'serialize_data': False, 'pipeline': []})
                if len(dataset) == 0:
                    raise SystemExit(f'error: {_message(split, dataset)}')


def _leaves(dataset) -> Iterator[dict]:
    """Configs of the datasets that read files, without their wrappers."""
    if not isinstance(dataset, dict):
        return  # none, or built already
    if 'datasets' in dataset:
        for part in dataset['datasets']:
            yield from _leaves(part)
    elif 'dataset' in dataset:
        yield from _leaves(dataset['dataset'])
    elif 'type' in dataset:
        yield dataset


def _message(split: str, dataset: BaseDataset) -> str:
    """Where images were looked for, and what is there instead."""
    name = f'the {split} split is empty: {type(dataset).__name__}'
    prefix = dataset.data_prefix
    folder, annotations = prefix.get('img_path'), prefix.get('seg_map_path')
    ann_file, suffix = dataset.ann_file, getattr(dataset, 'img_suffix', None)
    places = f'images in {folder!r}, annotations in {annotations!r}, split file {ann_file!r}'
    if dataset.load_data_list():
        return f'{name} leaves out every image by its filter_cfg or indices ({places})'
    if ann_file and osp.isfile(ann_file):
        return (
            f'{name} finds no name in {ann_file} ({places}); it needs one line an image, '
            'the path below the image folder without suffix'
        )
    found = ''
    if folder and fileio.isdir(folder):
        kinds = Counter(
            osp.splitext(path)[1]
            for path in fileio.list_dir_or_file(folder, list_dir=False, recursive=True)
        )
        held = ', '.join(
            f'{count} {kind or "without suffix"}' for kind, count in kinds.most_common(5)
        )
        found = f' The folder holds {held or "no file"}.'
    return (
        f'{name} finds no image named *{suffix} in {folder} ({places}).{found} Set data_root, '
        f'data_prefix, img_suffix or ann_file of {split}_dataloader.dataset'
    )
