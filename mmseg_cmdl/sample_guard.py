"""Checks of every sample of a data loader in the worker that makes it, on the CPU.

On a GPU a label that isn't the number of a class is a device-side assertion that names neither file
nor value. Here it is one sentence that names both, before the batch leaves the worker.
"""

import os
import os.path as osp
from typing import Any, Callable, List, Optional, Sequence

from mmengine.dataset import Compose
from mmseg.structures import SegDataSample

from .checkpoint_file import is_local
from .errors import InputError
from .models.decode_heads.label_check import batch_labels


class DataError(InputError):
    """Data that can't be used; the message names the file or the split and what to do.

    Args:
        message (str): One sentence, or PyTorch's report of an error in a worker process, of which
            only the last sentence is kept.
    """

    def __init__(self, message: str):
        marker = f'{type(self).__module__}.{type(self).__qualname__}: '
        super().__init__(str(message).rsplit(marker, 1)[-1].strip())


class FileNamingCompose(Compose):
    """A pipeline whose errors name the image and the annotation.

    Args:
        pipeline (Compose): Its transforms are run.
    """

    def __init__(self, pipeline: Compose):
        super().__init__(pipeline.transforms)

    def __call__(self, data: dict) -> Optional[dict]:
        """See the base class.

        Raises:
            DataError: Whatever goes wrong in it.
        """
        image: Any = data.get('img_path')
        annotation: Any = data.get('seg_map_path')
        for transform in self.transforms:
            try:
                data = transform(data)
            except DataError:
                raise
            except Exception as error:
                name = getattr(type(transform), '__name__', 'a transform')
                is_gone = isinstance(error, FileNotFoundError) and annotation is not None
                if is_gone and is_missing(annotation) and not is_missing(image or ''):
                    raise DataError(missing_annotation(image, annotation)) from error
                remedy = (
                    'Fetch or convert the file that is meant again, or take it out of the split'
                    if name.startswith('Load')
                    else 'Look at the options of the transform, and whether image and annotation '
                    'belong together'
                )
                files = image if annotation is None else f'{image} (annotation {annotation})'
                raise DataError(
                    f'{files} can not be used: {name}: {type(error).__name__}: {error}. {remedy}'
                ) from error
            if data is None:
                return None
        return data


class SampleCheck:
    """A `collate_fn` that checks the samples of a batch before it collates them.

    Args:
        collate (Callable, optional): Collates them; None where samples are only checked.
        classes (Sequence[tuple[int, int | None]]): (number of classes, `ignore_index`) of each head
            and metric that takes the labels.
        channels (int, optional): Channels that the images must have; not checked by default.
        sizes (bool): Whether a label map must have the size of what the pipeline made of its image,
            as in training; else that of the image itself, as a metric compares them.
    """

    def __init__(
        self,
        collate: Optional[Callable],
        classes: Sequence[tuple],
        channels: Optional[int] = None,
        sizes: bool = True,
    ):
        self.collate: Any = collate
        self.classes = list(classes)
        self.channels = channels
        self.sizes = sizes

    def __call__(self, batch: List[dict]) -> Any:
        """Looks at `batch`, then puts it together.

        Raises:
            DataError: Names the file, the values, K, `ignore_index`, `reduce_zero_label` and what
                to do; or the number of channels.
        """
        for sample in batch:
            self.look(sample.get('inputs'), sample.get('data_samples'))
        return self.collate(batch)

    def look(self, image: Any, sample: Any) -> None:
        """Looks at an image [C, H, W] and its SegDataSample, or at lists of both.

        Raises:
            DataError: As above.
        """
        if isinstance(sample, (list, tuple)):
            images = image if isinstance(image, (list, tuple)) else [image] * len(sample)
            for each in zip(images, sample):
                self.look(*each)
            return
        meta = getattr(sample, 'metainfo', {})
        found = image.shape[0] if getattr(image, 'ndim', 0) == 3 else None
        if None not in (found, self.channels) and found != self.channels:
            raise DataError(
                f'{meta.get("img_path", "an image")} has {found} channels, and '
                f"model.data_preprocessor.mean {self.channels}. Set mean, std and the backbone's "
                'in_channels to what the images have, or color_type of LoadImageFromFile: '
                "'color' gives three channels, 'grayscale' one, 'unchanged' those of the file"
            )
        if 'gt_sem_seg' not in (sample or ()):
            return
        if not self.sizes:
            if self.classes:
                _check_size_of_file(sample)
            kept = {key: meta[key] for key in meta if key not in ('img_shape', 'pad_shape')}
            sample = SegDataSample(metainfo=kept, gt_sem_seg=sample.gt_sem_seg)
        try:
            for num_classes, ignore_index in self.classes:
                batch_labels([sample], num_classes, ignore_index)
        except ValueError as error:
            raise DataError(str(error)) from error


def _check_size_of_file(sample: SegDataSample) -> None:
    """In validation and test predictions are brought to the size that the image has in its file."""
    meta, label = sample.metainfo, sample.gt_sem_seg.data
    size = meta.get('ori_shape')
    if size is None or label.ndim != 3 or tuple(label.shape[1:]) == tuple(size[:2]):
        return
    raise DataError(
        f'{meta.get("seg_map_path", "an annotation")} is {label.shape[1]}x{label.shape[2]} where '
        f'its image ({meta.get("img_path", "unknown")}) is {size[0]}x{size[1]} (height x width), '
        'at which predictions are compared. If the files differ, resize the annotation to its '
        'image (nearest), or look for a pair that does not belong together; if they do not, load '
        'annotations after Resize in the pipeline of validation and test'
    )


def is_missing(path: str) -> bool:
    """Whether it is a local file that is not there."""
    return is_local(path) and not osp.exists(path)


def missing_annotation(image: Optional[str], annotation: str) -> str:
    """What to do where an image has no annotation, from what lies in the folder instead."""
    said = f'{annotation} is not there, the annotation of {image}'
    folder, name = osp.split(annotation)
    if not osp.isdir(folder):
        return f'{said}: there is no folder {folder}. Set data_root or data_prefix.seg_map_path'
    stem = _stem(image, annotation)
    suffix = name[len(stem) :]
    files = sorted(os.listdir(folder))
    endings = [file[len(stem) :] for file in files if stem and file.startswith(stem)]
    others = [ending for ending in endings if ending and not ending[0].isalnum()]
    if others:
        return (
            f"{said}; that folder has {stem + others[0]}. If that is it, set the dataset's "
            f'seg_map_suffix to {others[0]!r} (it is {suffix!r})'
        )
    kinds = f'such as {files[0]}' if files else 'none'
    return (
        f'{said}; that folder holds {len(files)} files, {kinds}. Set seg_map_suffix (it is '
        f'{suffix!r}) or data_prefix.seg_map_path of the dataset, or take the image out of the '
        'split'
    )


def _stem(image: Optional[str], annotation: str) -> str:
    """What the names of an image and of its annotation begin with."""
    name = osp.basename(annotation)
    stem = osp.splitext(osp.basename(image or annotation))[0]
    while not name.startswith(stem):
        stem = stem[:-1]
    return stem.rstrip('._-')
