"""How evenly things are used."""

import math

import torch
from torch import Tensor


def entropy_of_counts(counts: Tensor) -> Tensor:
    """Entropy of shares in units of its largest value, ln N: 1 if equal, 0 where one takes all.

    Args:
        counts (Tensor): [..., N].

    Returns:
        Tensor: float64 [...], NaN where nothing was counted; 1 for N = 1.
    """
    counts = counts.double()
    total = counts.sum(dim=-1, keepdim=True)
    shares = counts / total
    size = counts.shape[-1]
    # the other form would be 0 / 0
    entropy = shares.sum(dim=-1) if size == 1 else -torch.xlogy(shares, shares).sum(dim=-1)
    return (entropy / math.log(size) if size > 1 else entropy).clamp(min=0)
