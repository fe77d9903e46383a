"""Heads that stand at any place of MMSegmentation's CascadeEncoderDecoder."""

from functools import wraps
from typing import Any, Callable, Dict, List

from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.utils import ConfigType, SampleList
from torch import Tensor

from .label_check import batch_labels, num_labels


def at_any_stage(loss: Callable) -> Callable:
    """Lets a head's `loss(inputs, samples, train_cfg)` be called as that of a later stage.

    There `loss(inputs, prev_output, samples, train_cfg)` is what MMSegmentation calls.
    """

    @wraps(loss)
    def call(self: BaseDecodeHead, inputs: List[Tensor], *args: Any, **kwargs: Any) -> dict:
        return loss(self, inputs, *args[-2:], **kwargs)

    return call


class CascadeStage(BaseDecodeHead):
    """A head that takes what the stage before it predicts, and doesn't look at it.

    The stage before is then trained as an auxiliary head is. A head that refines a prediction, such
    as OCRHead, stands after ours, or is its `context`.

    A subclass has `forward(inputs, prev_output=None)`, and marks a `loss` of its own by
    :func:`at_any_stage`.
    """

    def predict(self, inputs: List[Tensor], *args: Any) -> Tensor:
        """Logits at the size of the images.

        Args:
            inputs (list[Tensor]): Feature maps of the backbone.
            *args: `batch_img_metas` and `test_cfg`, as in the base class; after the first stage of
                a cascade `prev_output` stands before them.
        """
        batch_img_metas, test_cfg = args[-2:]
        return super().predict(inputs, batch_img_metas, test_cfg)

    @at_any_stage
    def loss(
        self, inputs: List[Tensor], batch_data_samples: SampleList, train_cfg: ConfigType
    ) -> Dict[str, Tensor]:
        """All losses of one iteration, after the labels are checked, and scalars to log.

        Args:
            inputs (list[Tensor]): Feature maps of the backbone.
            batch_data_samples (list[SegDataSample]): Ground truth.
            train_cfg (dict): Unused, as in the base class.

        Returns:
            dict[str, Tensor]: `loss_*` and `acc_seg`.
        """
        batch_labels(batch_data_samples, num_labels(self), self.ignore_index)
        return super().loss(inputs, batch_data_samples, train_cfg)
