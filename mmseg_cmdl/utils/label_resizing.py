"""Labels at the size of a feature map."""
from typing import Tuple

import torch
from torch import Tensor


def labels_at_feature_size(labels: Tensor, size: Tuple[int, int]) -> Tensor:
    """Nearest labels at feature size: row and column indices are rounded down after scaling.

    The index arithmetic is in integers. Float scale factors, as in `F.interpolate`, can land on
    the wrong side of a pixel border at sizes that don't divide each other.

    Args:
        labels (Tensor): Label maps [B, H, W], of any integer type.
        size (tuple[int, int]): Feature size (h, w).

    Returns:
        Tensor: Labels [B, h, w], of the same type.
    """
    if labels.shape[-2:] == tuple(size):
        return labels
    rows, cols = (
        torch.arange(n, device=labels.device) * full // n
        for n, full in zip(size, labels.shape[-2:]))
    return labels[:, rows[:, None], cols]
