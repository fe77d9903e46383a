"""How similar the feature of one pixel is to those of all others (CAR, fig. 5)."""

from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError


def feature_at(
    position: Tuple[int, int],
    image_size: Tuple[int, int],
    feature_size: Tuple[int, int],
    stride: Tuple[float, float],
) -> Tuple[int, ...]:
    """Row and column of the feature that covers a pixel of the image.

    Args:
        position (tuple[int, int]): Row and column in the image.
        image_size (tuple[int, int]): Height and width of the image.
        feature_size (tuple[int, int]): Size of the feature map.
        stride (tuple[float, float]): Image pixels per feature.

    Raises:
        InputError: The pixel lies outside of the image.
    """
    if not all(0 <= p < n for p, n in zip(position, image_size)):
        raise InputError(
            f'pixel x={position[1]} y={position[0]} is outside of the image, '
            f'which is {image_size[1]} wide and {image_size[0]} high'
        )
    return tuple(min(int(p / s), n - 1) for p, s, n in zip(position, stride, feature_size))


def pixel_relation(features: Tensor, position: Tuple[int, int], kind: str = 'cosine') -> Tensor:
    """Similarity of every feature with the one at `position`.

    Args:
        features (Tensor): [h, w, Z].
        position (tuple[int, int]): Row and column in it.
        kind (str): 'cosine', or 'dot', the product as it is.

    Returns:
        Tensor: [h, w].
    """
    if kind not in ('cosine', 'dot'):
        raise ValueError(f"kind must be 'cosine' or 'dot', got {kind!r}")
    if kind == 'cosine':
        features = F.normalize(features, dim=-1)
    return torch.einsum('hwz,z->hw', features, features[position])
