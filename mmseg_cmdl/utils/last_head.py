"""The head of a segmentor that predicts."""

from torch import nn


def last_head(model: nn.Module) -> nn.Module:
    """The decode head; the last one of a cascade."""
    head = model.decode_head
    return head[-1] if isinstance(head, nn.ModuleList) else head
