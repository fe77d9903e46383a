"""Maximum over the first dimension, with its place."""

from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor


def max_over_first(values: Tensor) -> Tuple[Tensor, Tensor]:
    """Largest over the first dimension, and where it is.

    Args:
        values (Tensor): [N, K, P], float32 or better.

    Returns:
        tuple[Tensor]: Largest [K, P], and its row in `values.flatten(0, 1)`, int64 [K, P]; of equal
        ones the first. Without gradient.
    """
    _, K, P = values.shape
    values = values.detach()
    if values.device.type == 'cpu' and P > 0:
        # Pixels are the channels of a picture of N times K, in memory channels last: pooling then
        # is vectorised and several times faster than `max`.
        picture = values[None].permute(0, 3, 1, 2)
        largest, row = F.max_pool2d(picture, (len(values), 1), return_indices=True)
        return largest.view(P, K).t(), row.view(P, K).t()
    largest, index = values.max(dim=0)
    return largest, index * K + torch.arange(K, device=index.device)[:, None]
