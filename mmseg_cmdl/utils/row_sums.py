"""Sums of features by the row of a table that each pixel belongs to."""

from typing import Tuple

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
    # a spare row for what doesn't count, which may hold anything, NaN included
    sums = features.new_zeros(num_rows + 1, features.shape[1]).index_add(0, rows, features)
    counts = features.new_zeros(num_rows + 1).index_add(
        0, rows, features.new_ones(1).expand(len(rows))
    )
    return sums[:num_rows], counts[:num_rows]
