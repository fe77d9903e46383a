"""Sums of features by the row of a table that each pixel belongs to."""

from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor


def row_sums(features: Tensor, rows: Tensor, num_rows: int) -> Tuple[Tensor, Tensor]:
    """This rank's sum of features and number of pixels of each row.

    Args:
        features (Tensor): [P, C], float32 or better.
        rows (Tensor): int64 [P] in 0..R; R for pixels that don't count.
        num_rows (int): R.

    Returns:
        tuple[Tensor]: Sums [R, C], with the graph of `features`, and counts [R] of the same type.
    """
    if features.device.type == 'cpu' and not (features.requires_grad and torch.is_grad_enabled()):
        # The same additions in the same order, but faster: pixels of one row are added up in
        # registers, and those that don't count, sorted to the end, aren't read. Narrow keys are
        # sorted several times faster than int64. NumPy reads a number without an operation.
        narrow = torch.int16 if num_rows < 1 << 15 else torch.int32
        keys, order = rows.to(narrow).sort(stable=True)
        starts = torch.searchsorted(keys, torch.arange(num_rows + 1, dtype=narrow))
        counted = order[: int(starts.numpy()[-1])]
        sums = F.embedding_bag(counted, features, starts[:-1], mode='sum')
        return sums, starts.diff().to(sums)
    sums = features.new_zeros(num_rows + 1, features.shape[1]).index_add(0, rows, features)
    counts = features.new_zeros(num_rows + 1).index_add(
        0, rows, features.new_ones(1).expand(len(rows))
    )
    return sums[:num_rows], counts[:num_rows]
