"""Sums of features by the row of a table that each pixel belongs to."""

from typing import Tuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def _sorting_is_faster(features: Tensor) -> bool:
    has_graph = features.requires_grad and torch.is_grad_enabled()
    return features.device.type == 'cpu' and not has_graph


def row_sums(features: Tensor, rows: Tensor, num_rows: int) -> Tuple[Tensor, Tensor]:
    """This rank's sum of features and number of pixels of each row.

    Args:
        features (Tensor): [P, C], float32 or better.
        rows (Tensor): int64 [P] in 0..R; R for pixels that don't count.
        num_rows (int): R.

    Returns:
        tuple[Tensor]: Sums [R, C], with the graph of `features`, and counts [R] of the same type.
    """
    if _sorting_is_faster(features):
        # The same additions in the same order, but faster: pixels of one row are added up in
        # registers, and those that don't count, sorted to the end, aren't read. NumPy sorts 16 bit
        # keys by their digits.
        keys = rows.numpy()
        order = np.argsort(keys.astype(np.uint16) if num_rows < 1 << 16 else keys, kind='stable')
        counts = np.bincount(keys, minlength=num_rows + 1)[:num_rows]
        ends = counts.cumsum()
        counted, starts = (torch.from_numpy(x) for x in (order[: ends[-1]], ends - counts))
        sums = F.embedding_bag(counted, features, starts, mode='sum')
        return sums, torch.from_numpy(counts).to(sums)
    sums = features.new_zeros(num_rows + 1, features.shape[1]).index_add(0, rows, features)
    counts = features.new_zeros(num_rows + 1).index_add(
        0, rows, features.new_ones(1).expand(len(rows))
    )
    return sums[:num_rows], counts[:num_rows]
