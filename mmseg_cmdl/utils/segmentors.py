"""Parts of a segmentor: itself without wrappers, and the head that predicts."""

from typing import Any

from mmengine.model import BaseTTAModel, is_model_wrapper
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import BaseSegmentor
from torch import nn


def unwrapped(model: Any) -> Any:
    """A model without the wrappers of several ranks and of test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def last_head(model: BaseSegmentor) -> BaseDecodeHead:
    """The decode head; the last one of a cascade."""
    head = model.decode_head
    return head[-1] if isinstance(head, nn.ModuleList) else head
