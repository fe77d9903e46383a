"""The labels of a batch as one tensor, of which no label may stand for a class that isn't there.

The data pipeline checks each annotation on the CPU and names its file
(:mod:`mmseg_cmdl.data_guard`). This is for labels that come another way.
"""

from typing import Optional

import torch
from mmseg.structures import SegDataSample
from mmseg.utils import SampleList
from torch import Tensor, nn

# What became of the option `check_labels`.
LABELS_ARE_CHECKED = 'Labels are checked in the data pipeline, and without waiting in the heads'


def num_labels(head: Optional[nn.Module]) -> int:
    """How many labels a head learns to tell; 0 for what is no such head.

    A single logit tells foreground from background, 1 from 0, if its losses are made for that.
    """
    classes = getattr(head, 'num_classes', None)
    if not isinstance(classes, int):
        return 0
    if getattr(head, 'out_channels', None) != 1:
        return classes
    losses = getattr(head, 'loss_decode', None)
    losses = losses if isinstance(losses, nn.ModuleList) else [losses]
    # over one logit a softmax is 1 everywhere
    has_softmax = any(getattr(loss, 'use_sigmoid', None) is False for loss in losses)
    return classes if has_softmax else max(classes, 2)


def check_one_logit_a_class(head: nn.Module) -> None:
    """Refuses a single logit for foreground and background where each class needs one.

    Raises:
        ValueError: Says what to write.
    """
    if head.out_channels == head.num_classes and num_labels(head) == head.num_classes:
        return
    raise ValueError(
        f'{type(head).__name__}: each class has a place in the memory and needs a logit of its '
        f'own, got out_channels={head.out_channels} with num_classes={head.num_classes}. For '
        'foreground and background write num_classes=2, out_channels=2, loss_decode=dict(type='
        "'CrossEntropyLoss', use_sigmoid=False); the labels 0 and 1 stay as they are"
    )


def batch_labels(samples: SampleList, num_classes: int, ignore_index: Optional[int]) -> Tensor:
    """Stacks the label maps of a batch and refuses labels outside 0..K-1.

    Nothing waits for the device: on a CPU a wrong label is a ValueError that names it, on CUDA an
    assertion with the same sentence, raised by whatever waits next.

    Args:
        samples (list[SegDataSample]): Ground truth.
        num_classes (int): K, the number of classes.
        ignore_index (int | None): Label that doesn't count.

    Returns:
        Tensor: [B, H, W].

    Raises:
        ValueError: A map has another size than its image or several channels, or a label is neither
            in 0..K-1 nor `ignore_index`; names the files, values, K and `reduce_zero_label`.
    """
    for sample in samples:
        _check_size(sample)
    labels = torch.cat([sample.gt_sem_seg.data for sample in samples])
    wrong = (labels < 0) | (labels >= num_classes)
    if ignore_index is not None:
        wrong &= labels != ignore_index
    problem = (
        f'outside 0..{num_classes - 1} and not ignore_index={ignore_index}: '
        f'num_classes={num_classes}'
    )
    remedy = (
        "Set num_classes to what the annotations hold, turn the dataset's reduce_zero_label on or "
        'off, or map these values to ignore_index'
    )
    try:
        torch._assert_async(~wrong.any(), f'labels {problem}. {remedy}')
    except RuntimeError as error:
        image = int(wrong.flatten(1).any(dim=1).nonzero()[0])
        values = sorted(set(labels[image][wrong[image]].tolist()))
        meta = samples[image].metainfo
        if not _inside(wrong[image], meta).any():
            raise ValueError(
                f'labels {values} are where the data preprocessor pads '
                f'{meta.get("img_path", "an image")} to the size of the others, and are {problem}. '
                'Set model.data_preprocessor.seg_pad_val to the ignore_index of the heads'
            ) from error
        raise ValueError(
            f'labels {values} of {meta.get("seg_map_path") or meta.get("img_path", "an image")} '
            f'(image {meta.get("img_path", "unknown")}) are {problem}, '
            f'reduce_zero_label={meta.get("reduce_zero_label", False)}. {remedy}'
        ) from error
    return labels


def _inside(labels: Tensor, meta: dict) -> Tensor:
    """Of a label map [H, W] what isn't padding of the data preprocessor."""
    left, right, top, bottom = meta.get('padding_size') or (0, 0, 0, 0)
    return labels[top : len(labels) - bottom, left : labels.shape[1] - right]


def _name(meta: dict) -> str:
    return meta.get('seg_map_path') or f'the annotation of {meta.get("img_path", "an image")}'


def _check_size(sample: SegDataSample) -> None:
    label, meta = sample.gt_sem_seg.data, sample.metainfo
    if label.dim() != 3 or label.shape[0] != 1:
        channels = f' ({label.shape[-1]} channels)' if label.dim() == 3 else ''
        raise ValueError(
            f'{_name(meta)} has shape {list(label.shape)}{channels}, but a label map has one '
            'channel that holds class indices. If it is painted in colours, map the colours to '
            'indices first and save it as a greyscale or palette PNG'
        )
    if 'img_shape' not in meta:
        return
    size = tuple(meta['img_shape'][:2])
    may_be = [size]
    if meta.get('padding_size') is not None:
        # the data preprocessor pads image and annotation by the same amounts, and then calls the
        # shape of the annotation `pad_shape`; without it `pad_shape` may stem from before a crop
        left, right, top, bottom = meta['padding_size']
        size = (size[0] + top + bottom, size[1] + left + right)
        may_be = [size]
    elif meta.get('pad_shape'):
        may_be.append(tuple(meta['pad_shape'][:2]))
    if tuple(label.shape[1:]) not in may_be:
        raise ValueError(
            f'{_name(meta)} is {label.shape[1]}x{label.shape[2]} where its image '
            f'({meta.get("img_path", "unknown")}) is {size[0]}x{size[1]} (height x width, after '
            'the pipeline): image and annotation must be of one size. Resize the annotation to its '
            'image (nearest), or look for a pair that does not belong together'
        )
