"""Balanced assignment of pixels to the distributions of their class.

Source: MDRL, eq. 6 and 7; Cuturi, Sinkhorn Distances, NeurIPS 2013.
"""

from typing import Callable

import torch
from torch import Tensor

from ...utils import all_reduce_sum_

# Ranks share sums and no maximum: exponents are held where even their ratios are inside float64.
_LARGEST_EXPONENT = 300.0


def sinkhorn(
    scores: Tensor,
    classes: Tensor,
    num_classes: int,
    epsilon: float = 0.05,
    iterations: int = 3,
    all_reduce: Callable[[Tensor], Tensor] = all_reduce_sum_,
) -> Tensor:
    """Soft assignment of each pixel to the distributions of its own class (MDRL eq. 7).

    Starts from `exp(scores / epsilon)`. Each iteration scales, first, every distribution of every
    class to the same total over the pixels of that class and, second, every pixel to the same
    total over its distributions. All classes are balanced at once, each on its own, over the pixels
    of all ranks and in float64. Scores beyond `300 * epsilon` in magnitude are held there; a cosine
    never comes near.

    Args:
        scores (Tensor): Similarity [P, N] of each pixel to the N distributions of its own class.
        classes (Tensor): Class [P] of each pixel, int64; `num_classes` means left out.
        num_classes (int): K, the number of classes.
        epsilon (float): Smoothness (lambda in MDRL eq. 6), in units of the scores. Defaults to
            0.05.
        iterations (int): Number of iterations, at least 1. Defaults to 3.
        all_reduce (Callable): Sums a tensor over all ranks in place and returns it; called once per
            iteration.

    Returns:
        Tensor: Assignment [P, N]. Rows sum to 1, rows of left-out pixels are 0; the sum over the
        pixels of a class comes near M / N for each of its distributions, M its pixel count.
    """
    q = balance(scores, classes, num_classes, epsilon, iterations, all_reduce)
    q /= q.sum(dim=0)
    return q.masked_fill_(classes == num_classes, 0.0).t().to(scores.dtype)


def balance(
    scores: Tensor,
    classes: Tensor,
    num_classes: int,
    epsilon: float,
    iterations: int,
    all_reduce: Callable[[Tensor], Tensor] = all_reduce_sum_,
) -> Tensor:
    """:func:`sinkhorn` but for the last scaling of pixels, which doesn't change a pixel's largest.

    Returns:
        Tensor: float64 [N, P]; what left-out pixels have means nothing.
    """
    num_distributions = scores.shape[1]
    # pixels along the last dimension: sums over the few distributions are then over whole rows
    q = torch.empty(num_distributions, len(scores), dtype=torch.float64, device=scores.device)
    q.copy_(scores.t()).div_(epsilon).clamp_(-_LARGEST_EXPONENT, _LARGEST_EXPONENT).exp_()
    # where each entry's (class, distribution) is summed; left-out pixels share a spare class
    columns = classes.expand(num_distributions, -1)
    totals = q.new_zeros(num_distributions, num_classes + 1)
    for iteration in range(iterations):
        if iteration > 0:
            q /= q.sum(dim=0)
        all_reduce(totals.zero_().scatter_add_(1, columns, q))
        q /= totals.gather(1, columns)
    return q
