"""Labels are checked where they enter a head, before anything is indexed with them."""

from typing import List, Optional, Tuple

import torch
from mmseg.utils import SampleList
from torch import Tensor

_FIRST_ITERATIONS = 20


def _image_sizes(meta: dict) -> List[Tuple[int, int]]:
    """Heights and widths that the image of a sample may have; none where its meta data say none.

    The data preprocessor pads image and annotation by the same amounts, and then calls the shape of
    the annotation `pad_shape`. Without it `pad_shape` may stem from before a crop.
    """
    if 'img_shape' not in meta:
        return []
    size = tuple(meta['img_shape'][:2])
    padding = meta.get('padding_size')
    if padding is not None:
        left, right, top, bottom = padding
        return [(size[0] + top + bottom, size[1] + left + right)]
    return [size, *([tuple(meta['pad_shape'][:2])] if meta.get('pad_shape') else [])]


class LabelCheck:
    """Refuses labels outside 0..K-1 that aren't `ignore_index`.

    On CUDA the same mistake is a device-side assertion that names nothing. Looking at the labels
    waits for the device, so by default only the first 20 iterations of a process are checked.

    Args:
        mode (str): 'first', 'always' or 'off'.
        num_classes (int): K.
        ignore_index (int | None): Label that doesn't count.
    """

    def __init__(self, mode: str, num_classes: int, ignore_index: Optional[int]):
        if mode not in ('first', 'always', 'off'):
            raise ValueError(f"check_labels must be 'first', 'always' or 'off', got {mode!r}")
        self.mode = mode
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.checked = 0

    @staticmethod
    def stack(samples: SampleList) -> Tensor:
        """The label maps of a batch as one tensor, each of one channel and of its image's size.

        Args:
            samples (list[SegDataSample]): Ground truth.

        Returns:
            Tensor: [B, H, W].

        Raises:
            ValueError: Names the annotation, its shape and that of the image.
        """
        labels = [sample.gt_sem_seg.data for sample in samples]
        for label, sample in zip(labels, samples):
            meta = sample.metainfo
            image = meta.get('img_path', 'unknown')
            name = meta.get('seg_map_path') or f'the annotation of {image}'
            if label.dim() != 3 or label.shape[0] != 1:
                channels = f' ({label.shape[-1]} channels)' if label.dim() == 3 else ''
                raise ValueError(
                    f'{name} has shape {list(label.shape)}{channels}, but a label map has one '
                    'channel that holds class indices. If it is painted in colours, map the '
                    'colours to indices first and save it as a greyscale or palette PNG'
                )
            sizes = _image_sizes(meta)
            if sizes and tuple(label.shape[1:]) not in sizes:
                size = sizes[0]
                raise ValueError(
                    f'{name} is {label.shape[1]}x{label.shape[2]} where its image '
                    f'({image}) is {size[0]}x{size[1]} (height x width, '
                    'after the pipeline): image and annotation must be of one size. Resize the '
                    'annotation to its image (nearest), or look for a pair that does not belong '
                    'together'
                )
        return torch.cat(labels)

    def __call__(self, labels: Tensor, samples: SampleList) -> None:
        """
        Args:
            labels (Tensor): [B, H, W].
            samples (list[SegDataSample]): Where the labels came from, for the message.

        Raises:
            ValueError: Names image file, values, K, `ignore_index` and `reduce_zero_label`.
        """
        if self.mode == 'off' or (self.mode == 'first' and self.checked >= _FIRST_ITERATIONS):
            return
        self.checked += 1
        wrong = (labels < 0) | (labels >= self.num_classes)
        if self.ignore_index is not None:
            wrong &= labels != self.ignore_index
        if not wrong.any():
            return
        image = int(wrong.flatten(1).any(dim=1).nonzero()[0])
        values = sorted(set(labels[image][wrong[image]].tolist()))
        meta = samples[image].metainfo
        raise ValueError(
            f'labels {values} of {meta.get("seg_map_path") or meta.get("img_path", "an image")} '
            f'(image {meta.get("img_path", "unknown")}) are outside 0..{self.num_classes - 1} and '
            f'not ignore_index={self.ignore_index}: num_classes={self.num_classes}, '
            f'reduce_zero_label={meta.get("reduce_zero_label", False)}. Set num_classes to what '
            "the annotations hold, turn the dataset's reduce_zero_label on or off, or map these "
            'values to ignore_index'
        )
