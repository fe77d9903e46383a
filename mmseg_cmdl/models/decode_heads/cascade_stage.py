"""Heads that stand at any place of MMSegmentation's CascadeEncoderDecoder."""

from functools import wraps
from typing import Any, Callable, List

from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor


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

    A subclass has `forward(inputs, prev_output=None)` and marks its `loss` by :func:`at_any_stage`.
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
