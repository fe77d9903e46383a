"""Pictures of labels, and of which distribution of its class each pixel belongs to."""

from typing import Sequence

import numpy as np

from .style import IGNORED


def color_labels(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Label map as a picture.

    Args:
        labels (np.ndarray): [H, W]; a value outside the palette is ignored, and white.
        palette (Sequence): RGB of each class, 0 to 255.

    Returns:
        np.ndarray: uint8 [H, W, 3].
    """
    colors = np.array([*palette, IGNORED], dtype=np.uint8)
    outside = (labels < 0) | (labels >= len(palette))
    return colors[np.where(outside, len(palette), labels)]


def color_distributions(
    classes: np.ndarray,
    distributions: np.ndarray,
    num_distributions: int,
    palette: Sequence[Sequence[int]],
) -> np.ndarray:
    """Each pixel in the colour of its class, as a shade of its own for each distribution.

    Distribution 0 is the darkest shade, N - 1 the lightest.

    Args:
        classes (np.ndarray): Predicted class [H, W], in 0..K-1.
        distributions (np.ndarray): Index [H, W], in 0..N-1.
        num_distributions (int): N, the number of distributions of each class.
        palette (Sequence): RGB of each class, 0 to 255.

    Returns:
        np.ndarray: uint8 [H, W, 3].
    """
    base = np.asarray(palette, dtype=np.float64)[classes]
    shade = np.zeros(distributions.shape)
    if num_distributions > 1:
        shade = 2 * distributions / (num_distributions - 1) - 1  # -1 dark .. 1 light
    shade = 0.7 * shade[..., None]
    target = np.where(shade > 0, 255.0, 0.0)
    return np.rint(base + (target - base) * np.abs(shade)).astype(np.uint8)
