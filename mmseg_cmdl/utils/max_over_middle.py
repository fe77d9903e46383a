"""Maximum over the middle dimension, with its place."""

from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor


def _pooling_is_faster(values: Tensor) -> bool:
    return values.device.type == 'cpu' and values.numel() > 0


def max_over_middle(values: Tensor) -> Tuple[Tensor, Tensor]:
    """Largest over the middle dimension, and where it is.

    Args:
        values (Tensor): [K, N, P], float32 or better.

    Returns:
        tuple[Tensor]: Largest [K, P], and its row in `values.flatten(0, 1)`, int64 [K, P]; of equal
        ones the first. Without gradient.
    """
    K, N, P = values.shape
    values = values.detach()
    if _pooling_is_faster(values):
        # Pixels are the channels of a picture of K times N, in memory channels last: pooling then
        # is vectorised and several times faster than `max`.
        picture = values[None].permute(0, 3, 1, 2)
        largest, row = F.max_pool2d(picture, (1, N), return_indices=True)
        return largest.view(P, K).t(), row.view(P, K).t()
    largest, index = values.max(dim=1)
    return largest, index + N * torch.arange(K, device=index.device)[:, None]
