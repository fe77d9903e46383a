"""Bilinear resizing along one axis, as the indices, weights or matrix that it consists of."""

import torch
from torch import Tensor


class BilinearTaps:
    """Along one axis, the two cells that each of the resized values lies between.

    Same values as `torch.nn.functional.interpolate(mode='bilinear')`, with positions in float64.

    Args:
        size (int): n, length after resizing.
        cells (int): m, length before.
        align_corners (bool): As for `torch.nn.functional.interpolate`.
        like (Tensor): Gives the weights their type and device.

    Attributes:
        first, second (Tensor): Indices [n] of the two; equal beyond the last cell's centre.
        weights (tuple[Tensor]): [n] of each.
        one_hot (tuple[Tensor]): [n, m], 1 at the index of each.
        matrix (Tensor): [n, m], what the resizing multiplies with.
    """

    def __init__(self, size: int, cells: int, align_corners: bool, like: Tensor):
        position = torch.arange(size, dtype=torch.float64, device=like.device)
        if align_corners:
            position = position * ((cells - 1) / max(size - 1, 1))
        else:
            position = ((position + 0.5) * (cells / size) - 0.5).clamp_(min=0)
        first = position.floor().clamp_(max=cells - 1)
        fraction = (position - first).to(like.dtype)
        self.first = first.long()
        self.second = (self.first + 1).clamp(max=cells - 1)
        self.weights = (1 - fraction, fraction)
        every = torch.arange(cells, device=like.device)  # F.one_hot would wait for the device
        self.one_hot = tuple(
            (every == cell[:, None]).to(like.dtype) for cell in (self.first, self.second)
        )
        at_first, at_second = (one * w[:, None] for one, w in zip(self.one_hot, self.weights))
        self.matrix = at_first + at_second
