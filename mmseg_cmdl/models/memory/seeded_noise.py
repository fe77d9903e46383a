"""Random numbers that depend on a seed, a step and a position only.

A generator object has state to save, differs between CPU and CUDA and has to be advanced past the
pixels of the other ranks. A hash of the position needs none of that: resumed equals uninterrupted,
and no host synchronisation is needed on any device.
"""

import torch
from torch import Tensor

_GOLDEN_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift; `>>` on int64 copies the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _splitmix64(x: Tensor) -> Tensor:
    """Output function of SplitMix64 (Steele et al., OOPSLA 2014) on int64 with wrap-around."""
    x = (x ^ _shift_right(x, 30)) * -4658895280553007687
    x = (x ^ _shift_right(x, 27)) * -7723592293110705685
    return x ^ _shift_right(x, 31)


def gumbel_noise(positions: Tensor, num_columns: int, seed: int, step: Tensor) -> Tensor:
    """Standard Gumbel noise.

    Args:
        positions (Tensor): Global index [P] of each pixel, int64.
        num_columns (int): N, the number of columns.
        seed (int): Seed.
        step (Tensor): Number of the update, an int64 scalar on the device of `positions`.

    Returns:
        Tensor: Noise [P, N], float64, the same for equal arguments on any device.
    """
    stream = _splitmix64(_splitmix64(step + seed * _GOLDEN_GAMMA % (1 << 62)))
    columns = torch.arange(num_columns, device=positions.device)
    counter = positions[:, None] * num_columns + columns + 1
    bits = _splitmix64(stream + counter * _GOLDEN_GAMMA)
    uniform = (_shift_right(bits, 11).double() + 0.5) / (1 << 53)
    return -(-uniform.log()).log()
