"""Balanced assignment of pixels to the distributions of their class.

Source: MDRL, eq. 6 and 7; Cuturi, Sinkhorn Distances, NeurIPS 2013.
"""

from typing import Callable, Optional

import torch
from torch import Tensor

# Without a shared maximum, exponents are held where even their ratios are inside float64.
_LARGEST_EXPONENT = 300.0


def sinkhorn(
    scores: Tensor,
    classes: Tensor,
    num_classes: int,
    epsilon: float = 0.05,
    iterations: int = 3,
    all_reduce: Optional[Callable[[Tensor], Tensor]] = None,
) -> Tensor:
    """Soft assignment of each pixel to the distributions of its own class (MDRL eq. 7).

    Starts from `exp(scores / epsilon)`. Each iteration scales, first, every distribution of every
    class to the same total over the pixels of that class and, second, every pixel to the same
    total over its distributions. All classes are balanced at once, each on its own, in float64.

    Args:
        scores (Tensor): Similarity [P, N] of each pixel to the N distributions of its own class.
        classes (Tensor): Class [P] of each pixel, int64; `num_classes` means left out.
        num_classes (int): K, the number of classes.
        epsilon (float): Smoothness (lambda in MDRL eq. 6), in units of the scores. Defaults to
            0.05.
        iterations (int): Number of iterations, at least 1. Defaults to 3.
        all_reduce (Callable, optional): Sums a tensor over all ranks in place and returns it; then
            each class is balanced over the pixels of all ranks. Called once per iteration. The
            ranks share sums and no maximum, so scores beyond `300 * epsilon` in magnitude are held
            there (a cosine never comes near). Defaults to None: one process, any score.

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
    all_reduce: Optional[Callable[[Tensor], Tensor]],
) -> Tensor:
    """:func:`sinkhorn` but for the last scaling of pixels, which doesn't change a pixel's largest.

    Returns:
        Tensor: float64 [N, P]; what left-out pixels have means nothing.
    """
    num_distributions = scores.shape[1]
    # pixels along the last dimension: sums over the few distributions are then over whole rows
    log_q = torch.empty(num_distributions, len(scores), dtype=torch.float64, device=scores.device)
    log_q.copy_(scores.t()).div_(epsilon)
    # where each entry's (class, distribution) is summed; left-out pixels share a spare class
    columns = classes.expand(num_distributions, -1)

    totals = log_q.new_zeros(num_distributions, num_classes + 1)
    if all_reduce is None:
        # The first iteration in log space, where no score is too large or too small. From then on
        # each row sums to 1 and each column to at least 1 / (P * N), so plain factors are safe.
        # Totals of absent classes are log 0, which nobody reads.
        shift = totals.scatter_reduce(1, columns, log_q, 'amax', include_self=False)
        totals.scatter_add_(1, columns, (log_q - shift.gather(1, columns)).exp_())
        q = log_q.sub_(totals.log_().add_(shift).gather(1, columns)).softmax(dim=0)
        iterations -= 1
    else:
        q = log_q.clamp_(-_LARGEST_EXPONENT, _LARGEST_EXPONENT).exp_()

    for iteration in range(iterations):
        if iteration > 0:
            q /= q.sum(dim=0)
        totals.zero_().scatter_add_(1, columns, q)
        if all_reduce is not None:
            all_reduce(totals)
        q /= totals.gather(1, columns)
    return q
