"""Labels of pixels: which name a class, what of a table over classes is a pixel's own, labels at
feature size, and sums over the pixels of each row of a table.
"""

from typing import Sequence, Tuple

import torch
from torch import Tensor


def has_class(labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Bool mask of the labels in 0..K-1 that aren't `ignore_index`."""
    return class_rows(labels, num_classes, ignore_index) < num_classes


def class_rows(labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Labels of any integer type as int64 in 0..K, K for those without a class."""
    rows = labels.long().clamp(max=num_classes)
    rows = rows.masked_fill_(rows < 0, num_classes)
    if 0 <= ignore_index < num_classes:
        rows = rows.masked_fill_(rows == ignore_index, num_classes)
    return rows


def of_own_class(table: Tensor, classes: Tensor) -> Tensor:
    """Each pixel's entries at its own class.

    Args:
        table (Tensor): [P, K, N].
        classes (Tensor): int64 [P] in 0..K; what K, a pixel without a class, gives means nothing.

    Returns:
        Tensor: [P, N].
    """
    _, num_classes, width = table.shape
    index = classes.clamp(max=num_classes - 1)[:, None, None].expand(-1, 1, width)
    return table.gather(1, index).squeeze(1)


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
        Tensor: Labels [B, h, w], of the same type.
    """
    scale, shift = (1, 0) if mode == 'nearest' else (2, 1)
    rows, cols = (
        (scale * torch.arange(n, device=labels.device) + shift) * full // (scale * n)
        for n, full in zip(size, labels.shape[-2:])
    )
    return labels[:, rows[:, None], cols]


def row_sums(features: Tensor, rows: Tensor, num_rows: int) -> Tuple[Tensor, Tensor]:
    """This rank's sum of features and number of pixels of each row.

    Args:
        features (Tensor): [P, C], float32 or better.
        rows (Tensor): int64 [P] in 0..R; R for pixels that don't count.
        num_rows (int): R, the number of rows.

    Returns:
        tuple[Tensor]: Sums [R, C], with the graph of `features`, and counts [R] of the same type.
    """
    # a spare row for what doesn't count, which may hold anything, NaN included
    sums = features.new_zeros(num_rows + 1, features.shape[1]).index_add(0, rows, features)
    counts = features.new_zeros(num_rows + 1).index_add(
        0, rows, features.new_ones(1).expand(len(rows))
    )
    return sums[:num_rows], counts[:num_rows]
