import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Sums over pixels overflow or stall in half precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
