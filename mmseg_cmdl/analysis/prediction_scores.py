"""Scores of single images, and of a data set from their confusion matrices."""

from typing import Optional

import numpy as np


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels by true (row) and predicted (column) class.

    Args:
        truth (np.ndarray): Labels [H, W]; pixels outside 0..K-1 don't count.
        prediction (np.ndarray): [H, W], in 0..K-1.
        num_classes (int): K, the number of classes.

    Returns:
        np.ndarray: int64 [K, K].
    """
    used = (truth >= 0) & (truth < num_classes)
    pairs = truth[used].astype(np.int64) * num_classes + prediction[used]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_iou(confusion: np.ndarray) -> np.ndarray:
    """IoU of each class in percent [K]; NaN for classes neither labelled nor predicted."""
    hit = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hit
    with np.errstate(invalid='ignore', divide='ignore'):
        return np.where(union > 0, 100 * hit / union, np.nan)


def mean_iou(confusion: np.ndarray) -> Optional[float]:
    """Mean over the classes that are labelled or predicted, in percent; None where there are none.

    For a single image this counts a class that is predicted but not labelled as 0.
    """
    iou = class_iou(confusion)
    return float(np.nanmean(iou)) if np.isfinite(iou).any() else None


def pixel_accuracy(confusion: np.ndarray) -> Optional[float]:
    """Percentage of labelled pixels that are right."""
    total = confusion.sum()
    return float(100 * np.trace(confusion) / total) if total else None
