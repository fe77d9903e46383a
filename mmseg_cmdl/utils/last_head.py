"""The head of a segmentor that predicts."""

from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import BaseSegmentor
from torch import nn


def last_head(model: BaseSegmentor) -> BaseDecodeHead:
    """The decode head; the last one of a cascade."""
    head = model.decode_head
    return head[-1] if isinstance(head, nn.ModuleList) else head
