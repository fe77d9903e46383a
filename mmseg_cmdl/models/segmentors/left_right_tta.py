"""Test-time augmentation for data sets with left and right classes."""

from typing import Any, List, Sequence, Tuple

from mmseg.models.segmentors.seg_tta import SegTTAModel
from mmseg.utils import SampleList

from ...registry import MODELS


@MODELS.register_module()
class LeftRightTTAModel(SegTTAModel):
    """Swaps left and right classes back in what is predicted of a flipped image.

    The segmentor already flips the map back; a left arm is then in its place but has been called
    a right one, since in the flipped image it was.

    Args:
        swap_seg_labels (Sequence[tuple[int, int]]): Pairs of classes, as `RandomFlip` takes them.
        **kwargs: Options of :class:`mmseg.models.SegTTAModel`.
    """

    def __init__(self, *args: Any, swap_seg_labels: Sequence[Tuple[int, int]], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.order = list(range(self.module.num_classes))
        for left, right in swap_seg_labels:
            self.order[left], self.order[right] = right, left

    def merge_preds(self, data_samples_list: List[SampleList]) -> SampleList:
        """See the base class; vertically flipped images keep their classes."""
        for data_samples in data_samples_list:
            for sample in data_samples:
                if sample.get('flip_direction') in ('horizontal', 'diagonal'):
                    sample.seg_logits.data = sample.seg_logits.data[self.order]
        return super().merge_preds(data_samples_list)
