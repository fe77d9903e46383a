"""Which labels name a class, and what of a table over classes is a pixel's own."""

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
