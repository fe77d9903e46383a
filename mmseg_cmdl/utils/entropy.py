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
    shares = counts / counts.sum(dim=-1, keepdim=True)
    if counts.shape[-1] == 1:
        return shares.sum(dim=-1)  # the other form would be 0 / 0
    return torch.special.entr(shares).sum(dim=-1) / math.log(counts.shape[-1])
