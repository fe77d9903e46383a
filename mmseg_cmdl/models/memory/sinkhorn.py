"""Balanced assignment of pixels to the distributions of their class.

Source: MDRL, eq. 6 and 7; Cuturi, Sinkhorn Distances, NeurIPS 2013.
"""
from typing import Callable, Optional

import torch
from torch import Tensor

# Without a shared maximum, exponents are held inside what float64 can represent.
_LARGEST_EXPONENT = 600.0


def sinkhorn(scores: Tensor,
             classes: Tensor,
             num_classes: int,
             epsilon: float = 0.05,
             iterations: int = 3,
             all_reduce: Optional[Callable[[Tensor], Tensor]] = None) -> Tensor:
    """Soft assignment of each pixel to the distributions of its own class (eq. 7).

    Starts from `exp(scores / epsilon)`. Each iteration scales, first, every distribution of every
    class to the same total over the pixels of that class and, second, every pixel to the same
    total over its distributions. All classes are balanced at once, each on its own, in log space
    and float64.

    Args:
        scores (Tensor): Similarity [P, N] of each pixel to the N distributions of its own class.
        classes (Tensor): Class [P] of each pixel, int64; `num_classes` means left out.
        num_classes (int): K.
        epsilon (float): Smoothness (lambda in eq. 6), in units of the scores. Defaults to 0.05.
        iterations (int): Number of iterations. Defaults to 3.
        all_reduce (Callable, optional): Sums a tensor over all ranks in place and returns it; then
            each class is balanced over the pixels of all ranks. Called once per iteration. The
            ranks share sums and no maximum, so scores beyond `600 * epsilon` in magnitude are held
            there (a cosine never comes near). Defaults to None: one process, any score.

    Returns:
        Tensor: Assignment [P, N]. Rows sum to 1, rows of left-out pixels are 0; the sum over the
        pixels of a class comes near M / N for each of its distributions, M its pixel count.
    """
    num_distributions = scores.shape[1]
    kept = (classes < num_classes)[:, None]
    # where each entry's (class, distribution) is summed; left-out pixels share a spare class
    columns = classes[:, None] * num_distributions + torch.arange(
        num_distributions, device=scores.device)
    shape = num_classes + 1, num_distributions

    log_q = torch.where(kept, scores.double() / epsilon, 0.0).contiguous()
    if all_reduce is not None:
        log_q = log_q.clamp(-_LARGEST_EXPONENT, _LARGEST_EXPONENT)

    for _ in range(iterations):
        if all_reduce is None:
            shift = _per_column(shape, columns).scatter_reduce_(
                0, columns.view(-1), log_q.view(-1), 'amax', include_self=False).view(shape)
            sums = _per_column(shape, columns).scatter_add_(
                0, columns.view(-1), (log_q - shift.index_select(0, classes)).exp_().view(-1))
            column_totals = sums.log_().view(shape) + shift
        else:
            sums = _per_column(shape, columns).scatter_add_(
                0, columns.view(-1), log_q.exp().view(-1))
            # a distribution far from every pixel underflows to 0; it must still divide safely
            column_totals = all_reduce(sums).clamp_(min=1e-300).log_().view(shape)
        log_q = log_q - column_totals.index_select(0, classes)
        log_q -= log_q.logsumexp(dim=1, keepdim=True)

    return torch.where(kept, log_q.exp_(), 0.0).to(scores.dtype)


def _per_column(shape, columns: Tensor) -> Tensor:
    """A flat float64 zero for each distribution of each class."""
    return torch.zeros(shape[0] * shape[1], dtype=torch.float64, device=columns.device)
