"""Labels at the size of a feature map."""

from typing import Sequence

import torch
from torch import Tensor


def labels_at_feature_size(labels: Tensor, size: Sequence[int], mode: str = 'nearest') -> Tensor:
    """Nearest labels at feature size: row and column indices are rounded down after scaling.

    The index arithmetic is in integers. Float scale factors, as in `F.interpolate`, can land on
    the wrong side of a pixel border at sizes that don't divide each other.

    Args:
        labels (Tensor): Label maps [B, H, W], of any integer type.
        size (tuple[int, int]): Feature size (h, w).
        mode (str): 'nearest' scales the index of a feature pixel, 'nearest-exact' its centre, as in
            `F.interpolate`. Defaults to 'nearest'.

    Returns:
        Tensor: Labels [B, h, w], of the same type; a view of `labels` where the sizes divide.
    """
    scale, shift = (1, 0) if mode == 'nearest' else (2, 1)
    if all(full % n == 0 for n, full in zip(size, labels.shape[-2:])):
        # the general form below, without a gather: every index is a multiple plus a constant
        row_step, col_step = (full // n for n, full in zip(size, labels.shape[-2:]))
        return labels[
            :, shift * row_step // scale :: row_step, shift * col_step // scale :: col_step
        ]
    rows, cols = (
        (scale * torch.arange(n, device=labels.device) + shift) * full // (scale * n)
        for n, full in zip(size, labels.shape[-2:])
    )
    return labels[:, rows[:, None], cols]
