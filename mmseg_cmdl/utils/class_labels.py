"""Which labels name a class."""

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
