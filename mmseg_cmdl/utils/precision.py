import torch
import torch.nn.functional as F
from torch import Tensor, nn


def at_least_float32(values: Tensor) -> Tensor:
    """Sums over pixels overflow or stall in half precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def layer_norm(values: Tensor, norm: nn.LayerNorm) -> Tensor:
    """`norm(values)` in the type of the values, whatever type the weights are stored in."""
    weight, bias = (None if w is None else w.to(values.dtype) for w in (norm.weight, norm.bias))
    return F.layer_norm(values, norm.normalized_shape, weight, bias, norm.eps)
