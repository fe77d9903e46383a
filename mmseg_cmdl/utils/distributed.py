"""Sums over all ranks, without and with gradient.

Every sum over pixels of a class runs over the pixels of all ranks, so that one
global batch gives the same bank and the same gradients on any number of GPUs.
"""

from typing import Any, Sequence

import mmengine.dist as dist
import torch
from torch import Tensor


def all_reduce_sum_(tensor: Tensor) -> Tensor:
    """Sum `tensor` over all ranks, in place and without gradient; returns it."""
    dist.all_reduce(tensor)  # does nothing where no process group runs
    return tensor


def all_reduce_together(*tensors: Tensor) -> Sequence[Tensor]:
    """Each tensor summed over all ranks, without gradient, in one collective.

    Args:
        *tensors (Tensor): Of one type.

    Returns:
        Sequence[Tensor]: The sums, in the same shapes; the tensors themselves where no process
        group runs.
    """
    if dist.get_world_size() == 1:
        return tensors
    packed = all_reduce_sum_(torch.cat([tensor.flatten() for tensor in tensors]))
    parts = packed.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors)]


class _GlobalSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor) -> Tensor:
        return all_reduce_sum_(share.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # Each rank goes on to compute the same loss from the same sum, and DDP then averages the
        # parameter gradients over the ranks. World size times the gradient of one loss is what
        # makes that average the gradient of one process on the whole batch; no message is needed.
        return grad * dist.get_world_size()


def global_sum(share: Tensor) -> Tensor:
    """Sum over ranks of each rank's `share` of a loss, with gradient.

    Only for sums from which every rank computes the *same* scalar loss, under a wrapper that
    averages gradients over ranks, as DistributedDataParallel does. Then the averaged parameter
    gradient is that of one process which holds the whole batch.

    Args:
        share (Tensor): This rank's summand, any shape.

    Returns:
        Tensor: The sum, equal on all ranks.
    """
    return _GlobalSum.apply(share) if dist.get_world_size() > 1 else share


def global_mean(total: Tensor, count: Tensor) -> Tensor:
    """Mean over the elements of all ranks; 0 with a graph where there are none.

    Args:
        total (Tensor): Scalar, this rank's sum. Carries the gradient (see :func:`global_sum`).
        count (Tensor): Scalar, this rank's number of summands.

    Returns:
        Tensor: Scalar, equal on all ranks. One collective.
    """
    total, count = global_sum(torch.stack([total, count.to(total)]))
    return total / count.detach().clamp(min=1)
