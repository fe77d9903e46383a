"""Checks of the data before the first step of a job; the message names the split or the file.

What is found:

- A split without images, see :mod:`mmseg_cmdl.dataset_building`. An empty validation split would
  show only after the first interval of training.
- A file that is missing or can't be read. Decoders say what is wrong with it, but mostly not which
  file it is.
- A config that was written for other data: its number of classes, `reduce_zero_label`, the suffix
  of the annotations, names of classes, sizes of test-time augmentation. Many of these mistakes
  train without an error.
- A value of padding that isn't the one that the heads ignore, as a warning.
- Splits that number or name their classes otherwise than training does, and images that are left
  out because their suffix is another: both are warnings.
- A label that isn't the number of a class: see :mod:`mmseg_cmdl.sample_guard`.
"""

import copy
import inspect
import os
import os.path as osp
from collections import Counter
from functools import partial
from types import SimpleNamespace
from typing import Any, Callable, List, Optional, Sequence, Tuple

import mmcv
import numpy as np
from mmengine import fileio
from mmengine.dataset import Compose
from mmengine.model import BaseTTAModel
from mmengine.registry import FUNCTIONS
from mmengine.runner import Runner
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import DATASETS, TRANSFORMS
from torch import nn

from .checkpoint_file import is_local
from .dataset_building import build_dataset, leaves
from .errors import first_of
from .models.decode_heads.label_check import num_labels
from .sample_guard import DataError, SampleCheck, missing_annotation
from .utils import unwrapped

# Annotations that are looked through, where the first ones leave a doubt.
_MOST_ANNOTATIONS = 2000
_IMAGES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')


def guard_data(runner: Runner, *splits: str) -> None:
    """Builds the datasets of a runner, checks them, and has every sample checked from then on.

    Refused are splits without images, images without annotations, a number of classes other than
    the model's, and what the list above names. Samples are checked in the worker that makes them,
    and errors of the pipeline name their files. Datasets inside a wrapper (RepeatDataset,
    ConcatDataset, MultiImageMixDataset) are checked one by one. No random number is drawn. Call it
    before `runner.train()` or `runner.test()`, as tools/train.py and tools/test.py do.

    Args:
        runner (Runner): Its data loaders must not be built yet; those that are built are left as
            they are.
        *splits (str): 'train', 'val' or 'test'. One that the runner doesn't have is left out.

    Raises:
        DataError: Names the split, its folders or files, and what to do.
    """
    for split in splits:
        # the public property would build the loop
        loader = getattr(runner, f'_{split}_dataloader', None)
        if not isinstance(loader, dict) or not isinstance(loader.get('dataset'), dict):
            continue
        loader['dataset'] = dataset = build_dataset(loader['dataset'], split)
        check_dataset(runner, dataset, split)
        ignored = None if split == 'train' else _ignored(runner, split)
        loader['collate_fn'] = sample_check(runner.model, ignored, collate_of(loader))
    if 'train' in splits and not any(type(h).__name__ == 'DataGuardHook' for h in runner.hooks):
        from .engine import DataGuardHook

        runner.register_hook(DataGuardHook())


def collate_of(loader: dict) -> Callable:
    """The function that a data loader's config names, as mmengine builds it."""
    config = loader.get('collate_fn') or dict(type='pseudo_collate')
    if not isinstance(config, dict):
        return config
    options = dict(config)
    kind = options.pop('type')
    return partial(FUNCTIONS.get(kind) if isinstance(kind, str) else kind, **options)


def sample_check(
    model: Any,
    ignored: Optional[Sequence[Optional[int]]] = None,
    collate: Optional[Callable] = None,
) -> SampleCheck:
    """The check of the samples that a model learns from, or of those that it is compared with.

    Args:
        model: A segmentor, or what :func:`segmentor` takes.
        ignored (Sequence[int | None], optional): In validation and test the `ignore_index` of each
            metric; the labels have the sizes of the files there. By default the samples are those
            of training, and the heads say what they ignore.
        collate (Callable, optional): Collates the samples of a batch; by default they are only
            checked.
    """
    model = segmentor(model)
    heads = [head for _, head in class_heads(model)]
    if ignored is None:
        classes = {(num_labels(head), getattr(head, 'ignore_index', None)) for head in heads}
    else:
        classes = {(num_labels(head), index) for head in heads[:1] for index in ignored}
    mean = getattr(getattr(model, 'data_preprocessor', None), 'mean', None)
    channels = None if mean is None or len(mean) == 1 else len(mean)
    return SampleCheck(collate, sorted(classes, key=str), channels, sizes=ignored is None)


# ---- the model ----


def segmentor(model: Any) -> Any:
    """A model without the wrappers for several ranks and for test-time augmentation.

    FlexibleRunner holds the model's config until it trains; from it an object with the same
    attributes is made.
    """
    if isinstance(model, dict):
        model = model.get('module', model)
        return SimpleNamespace(
            decode_head=_head_of(model.get('decode_head')),
            auxiliary_head=_head_of(model.get('auxiliary_head')),
            data_preprocessor=SimpleNamespace(**(model.get('data_preprocessor') or {})),
        )
    return unwrapped(model)


def _head_of(config: Any) -> Any:
    """The numbers of a head's config, of each where there are several."""
    if isinstance(config, (list, tuple)):
        return [_head_of(each) for each in config]
    if not isinstance(config, dict):
        return None
    classes = config.get('num_classes')
    return SimpleNamespace(
        num_classes=classes,
        out_channels=config.get('out_channels', classes),
        ignore_index=config.get('ignore_index', 255),
    )


def class_heads(model: Any) -> List[Tuple[str, Any]]:
    """Heads that learn from the class labels, by their keys in the config.

    The one that predicts comes first.
    """
    found = []
    for key in ('decode_head', 'auxiliary_head'):
        heads = getattr(model, key, None)
        if isinstance(heads, (list, tuple, nn.ModuleList)):
            named = [(f'model.{key}.{index}', head) for index, head in enumerate(heads)]
            named = named[::-1] if key == 'decode_head' else named
        else:
            named = [(f'model.{key}', heads)]
        found += [(name, head) for name, head in named if num_labels(head)]
    # one that is trained on edges, as STDC's, has one or two classes where the others have more
    return [
        (name, head) for name, head in found if head is found[0][1] or num_labels(head) > 2
        or num_labels(found[0][1]) <= 2
    ]  # fmt: skip


def _ignored(runner: Runner, split: str) -> List[Optional[int]]:
    return ignored_labels(getattr(runner, f'_{split}_evaluator', None))


def ignored_labels(metrics: Any) -> List[Optional[int]]:
    """`ignore_index` of each metric of an evaluator, or of its config, that compares label maps."""
    metrics = getattr(metrics, 'metrics', metrics)
    found = []
    for metric in metrics if isinstance(metrics, (list, tuple)) else [metrics]:
        is_config = isinstance(metric, dict)
        if 'IoUMetric' in str(metric.get('type') if is_config else type(metric)):
            found.append(
                metric.get('ignore_index', 255) if is_config else metric.ignore_index
            )  # fmt: skip
    return found


# ---- the datasets ----


def check_dataset(runner: Runner, dataset: Any, split: str) -> None:
    """Refuses a dataset that doesn't fit the model, the metrics or the files.

    Args:
        runner (Runner): Has the model and the metrics.
        dataset: A dataset, or a wrapper around one or several.
        split (str): 'train', 'val' or 'test'.

    Raises:
        DataError: As :func:`guard_data` says.
    """
    heads = class_heads(segmentor(runner.model))
    has_metrics = bool(_ignored(runner, split))
    if split == 'train':
        _warn_of_padding(runner, heads)
    for leaf in leaves(dataset):
        if not isinstance(leaf, BaseSegDataset):
            continue
        infos = [leaf.get_data_info(index) for index in range(len(leaf))]
        if not infos or 'seg_map_path' not in infos[0]:
            continue
        _check_classes(leaf, split, heads, has_metrics)
        if split != 'train':
            _compare_with_training(runner, leaf, split)
        _warn_of_other_suffixes(runner, leaf, split)
        loader = _find(leaf.pipeline, LoadAnnotations)
        if loader is None:
            continue
        _refuse_missing(infos)
        if type(loader) is LoadAnnotations:
            _check_values(leaf, split, infos, loader)
        if split == 'test' and isinstance(runner.model, BaseTTAModel):
            _check_views(runner, leaf)


def _warn_of_padding(runner: Runner, heads: list) -> None:
    """An image smaller than the others is padded with a label, which must count nowhere."""
    value = getattr(
        getattr(segmentor(runner.model), 'data_preprocessor', None), 'seg_pad_val', None
    )
    for name, head in heads:
        index = getattr(head, 'ignore_index', None)
        if None not in (value, index) and value != index:
            runner.logger.warning(
                f'{name}.ignore_index is {index} and model.data_preprocessor.seg_pad_val {value}: '
                'where an image is smaller than the others of its batch, what is padded has a '
                f'label. Set model.data_preprocessor.seg_pad_val={index}'
            )
            return


def _find(pipeline: Any, kind: type) -> Any:
    """The first transform of a kind, looked for inside transforms that hold others as well."""
    for transform in getattr(pipeline, 'transforms', ()):
        if isinstance(transform, kind):
            return transform
        for inner in getattr(transform, 'subroutines', ()):
            found = _find(inner, kind)
            if found is not None:
                return found
    return None


def _check_classes(dataset: BaseSegDataset, split: str, heads: list, has_metrics: bool) -> None:
    """Names of classes are there where a metric asks for them, as many as the model has."""
    key = f'{split}_dataloader.dataset.metainfo'
    classes = dataset.metainfo.get('classes')
    if classes is None:
        if split != 'train' and has_metrics:
            raise DataError(
                f'the {split} split has no names of classes, which its metric asks for: set {key}='
                f"dict(classes=('...', ...), palette=[[R, G, B], ...]); {type(dataset).__name__} "
                'has none of its own. The same in the other splits: a checkpoint keeps those of '
                'training'
            )
        return
    for name, head in heads:
        count = num_labels(head)
        fits = {1, 2} if getattr(head, 'out_channels', None) == 1 and count == 2 else {count}
        if len(classes) not in fits:
            others = [f'{other}.num_classes={len(classes)}' for other, _ in heads]
            raise DataError(
                f'{name}.num_classes is {head.num_classes}, but the {split} split has '
                f'{len(classes)} classes ({first_of(classes)}). Set {", ".join(others)}, or name '
                f'{count} classes in {key}'
            )


def _compare_with_training(runner: Runner, dataset: BaseSegDataset, split: str) -> None:
    """Warns where a split numbers or names its classes otherwise than training does."""
    own = _numbering(dataset)
    loader = getattr(runner, '_train_dataloader', None) or {}
    training = loader.get('dataset') if isinstance(loader, dict) else loader.dataset
    found = [] if training is None else map(_numbering, leaves(training))
    others = [numbering for numbering in found if numbering is not None]
    if own is None or not others or own in others:
        return
    key = f'{split}_dataloader.dataset'
    if all(own[0] != reduces for reduces, _ in others):
        runner.logger.warning(
            f'reduce_zero_label is {own[0]} in the {split} split and {not own[0]} in training: '
            'unless their annotations differ by this, labels are shifted by one and the scores '
            f'mean nothing. Set reduce_zero_label={not own[0]} in {key}'
        )
    if own[1] and all(names and own[1] != names for _, names in others):
        runner.logger.warning(
            f'the {split} split calls its classes {first_of(own[1])}, and training '
            f'{first_of(others[0][1])}: scores are printed under names in the order of '
            f'{key}.metainfo'
        )


def _numbering(dataset: Any) -> Optional[Tuple[bool, tuple]]:
    """`reduce_zero_label` and the names of the classes of a dataset or of the config of one.

    None for what is no BaseSegDataset.
    """
    if not isinstance(dataset, dict):
        if not isinstance(dataset, BaseSegDataset):
            return None
        return bool(dataset.reduce_zero_label), tuple(dataset.metainfo.get('classes') or ())
    kind = dataset.get('type')
    cls: Any = DATASETS.get(kind) if isinstance(kind, str) else kind
    if cls not in DATASETS.module_dict.values() or not issubclass(cls, BaseSegDataset):
        return None
    option = inspect.signature(cls).parameters.get('reduce_zero_label')
    default = False if option is None else option.default
    names = (dataset.get('metainfo') or {}).get('classes') or cls.METAINFO.get('classes') or ()
    # a text is the path of a file that has them
    names = () if isinstance(names, str) else tuple(names)
    return bool(dataset.get('reduce_zero_label', default)), names


def _warn_of_other_suffixes(runner: Runner, dataset: BaseSegDataset, split: str) -> None:
    """Of a folder that is read whole, images of another suffix are left out without a word."""
    folder = dataset.data_prefix.get('img_path')
    suffix = osp.splitext(f'image{dataset.img_suffix}')[1]
    if not folder or not suffix or osp.isfile(dataset.ann_file) or not osp.isdir(folder):
        return
    if osp.realpath(folder) == osp.realpath(dataset.data_prefix.get('seg_map_path') or ''):
        return
    files = fileio.list_dir_or_file(folder, list_dir=False, recursive=True)
    endings = Counter(osp.splitext(path)[1] for path in files)
    others = {end: n for end, n in endings.items() if end != suffix and end.lower() in _IMAGES}
    if others:
        listed = ', '.join(f'{count} {end}' for end, count in others.items())
        runner.logger.warning(
            f'images of another suffix than {dataset.img_suffix} are left out of the {split} '
            f'split: {listed} in {folder}, beside {endings[suffix]} {suffix}. Rename or convert '
            'them, or read them as a second dataset (ConcatDataset) with its own img_suffix'
        )


def _refuse_missing(infos: List[dict]) -> None:
    """All images and annotations are there; each folder is listed once."""
    there = {}
    for info in infos:
        for path in (info['img_path'], info['seg_map_path']):
            if not is_local(path):
                continue
            folder, name = osp.split(path)
            if folder not in there:
                there[folder] = set(os.listdir(folder)) if osp.isdir(folder) else set()
            if name in there[folder] or osp.exists(path):
                continue
            if path == info['seg_map_path']:
                raise DataError(missing_annotation(info.get('img_path'), path))
            raise DataError(
                f'{path} is not there. Set data_root, data_prefix.img_path or img_suffix of the '
                'dataset, or take it out of the split file'
            )


def _check_values(
    dataset: BaseSegDataset, split: str, infos: list, loader: LoadAnnotations
) -> None:
    """What MMSegmentation's LoadAnnotations would make of the annotations without a word."""
    first = infos[0]['seg_map_path']
    values = _annotation(first, loader)
    if values.size and values.max() > 255:
        raise DataError(
            f"{first} has labels up to {values.max()}, but MMSegmentation's LoadAnnotations keeps "
            '8 bits and would take 256 for 0. Write the labels as 0..254 and 255 (ignored), or '
            'load them by a transform of your own'
        )
    classes = dataset.metainfo.get('classes')
    if split != 'train' or not dataset.reduce_zero_label or dataset.label_map or not classes:
        return
    # 0 is unlabelled, and classes are 1..K: where K never comes and 0..K-1 do, 0 is a class
    count, seen = len(classes), np.zeros(256, bool)
    order = np.random.default_rng(0).permutation(len(infos))[:_MOST_ANNOTATIONS]
    for index in order:
        values = _annotation(infos[index]['seg_map_path'], loader).astype(np.uint8)
        seen |= np.bincount(values.ravel(), minlength=256) > 0
        if count > 254 or seen[count]:
            return
    if seen[:count].all():
        raise DataError(
            f'reduce_zero_label=True takes 0 for unlabelled and 1..{count} for {count} classes, '
            f'but {len(order)} annotations in {osp.dirname(first)} hold 0..{count - 1} and no '
            f'{count}: 0 is one of the classes. Set reduce_zero_label=False in '
            f'{split}_dataloader.dataset, in the other splits too. If 0 is unlabelled, the last '
            f'class ({classes[-1]}) never comes: leave it out of metainfo and num_classes'
        )


def _annotation(path: str, loader: LoadAnnotations) -> np.ndarray:
    """An annotation as it is in its file; an error of the decoder is left to the pipeline."""
    try:
        content = fileio.get(path, backend_args=loader.backend_args)
        values = mmcv.imfrombytes(content, flag='unchanged', backend=loader.imdecode_backend)
    except Exception:
        values = None
    return np.zeros(0, np.uint8) if values is None else values


def _check_views(runner: Runner, dataset: BaseSegDataset) -> None:
    """Warns where test-time augmentation looks at images of other sizes than the test without."""
    pipeline = runner.cfg.get('test_pipeline')
    if pipeline is None:
        single = runner.cfg.get('val_dataloader') or {}
        pipeline = (single.get('dataset') or {}).get('pipeline')
    if not pipeline:
        return
    alone = Compose([TRANSFORMS.build(each) if isinstance(each, dict) else each
                     for each in pipeline])  # fmt: skip
    info = dataset.get_data_info(0)
    try:
        ((height, width),) = _shapes(alone(copy.deepcopy(info)))
        views = _shapes(dataset.pipeline(info))
    except Exception:
        return  # the test itself says what is wrong
    if any(abs(h - height) <= 0.02 * height + 1 for h, _ in views):
        return
    sizes = sorted({f'{h}x{w}' for h, w in views}, key=lambda size: int(size.split('x')[0]))
    runner.logger.warning(
        f'--tta looks at the first image at {", ".join(sizes)} and the test without it at '
        f'{height}x{width}: none of the views is of that size. tta_pipeline is perhaps the one of '
        'a base config; write one for these images into the config'
    )


def _shapes(packed: dict) -> List[Tuple[int, int]]:
    """Height and width of each image that a pipeline made of one."""
    samples = packed['data_samples']
    samples = samples if isinstance(samples, (list, tuple)) else [samples]
    return [tuple(sample.metainfo['img_shape'][:2]) for sample in samples]


def never_seen(absent: Sequence[int], metainfo: dict, where: str) -> str:
    """The warning about classes without a labelled pixel.

    Args:
        absent (Sequence[int]): The classes.
        metainfo (dict): That of the dataset.
        where (str): Which images were counted.

    Returns:
        str: Names the classes and the most common causes.
    """
    classes = metainfo.get('classes')
    names = [f'{classes[c]} ({c})' if classes and c < len(classes) else str(c) for c in absent]
    return (
        f'no pixel of {where} is labelled as {first_of(names)}: nothing is learnt of these. '
        + why_never_seen(metainfo)
    )


def why_never_seen(metainfo: Optional[dict] = None) -> str:
    """The most common causes of classes without a labelled pixel."""
    value = (metainfo or {}).get('reduce_zero_label')
    return (
        'If they are not just rare, the commonest causes are masks painted in 0 and 255 (255 is '
        'ignored: write 0 and 1), reduce_zero_label'
        + ('' if value is None else f' (it is {value})')
        + ', which takes 0 for unlabelled, and annotations whose numbers are not the order of the '
        'classes in metainfo'
    )
