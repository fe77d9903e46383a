"""Cross entropy at label size of scores at feature size, without a map of scores at label size.

`F.cross_entropy(F.interpolate(scores, size), classes)` holds [B, K, H, W] several times over, 64
times the scores themselves at stride 8. Here it is taken of a band of label rows at a time, and
the backward pass forms each band anew.
"""

import math
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...utils import at_least_float32

# Size of a band's scores: stays in the cache of a CPU, is enough work for a GPU.
_BAND_BYTES = {'cpu': 1 << 23, 'cuda': 1 << 26}


def resized_cross_entropy(
    scores: Tensor,
    classes: Tensor,
    align_corners: bool = False,
    band_rows: Optional[int] = None,
) -> Tensor:
    """Sum over pixels of the cross entropy of bilinearly resized scores.

    The same number as resizing with `F.interpolate`, then `F.cross_entropy(reduction='sum')`.

    Args:
        scores (Tensor): [B, K, h, w].
        classes (Tensor): int64 [B, H, W] in 0..K, K for pixels that don't count.
        align_corners (bool): As for `F.interpolate`. Defaults to False.
        band_rows (int, optional): Rows of label pixels at a time. Defaults to what suits the
            device's cache.

    Returns:
        Tensor: Scalar, in float32 or the wider type of the scores.
    """
    scores = at_least_float32(scores).contiguous()  # once, and not for each band
    if band_rows is None:
        band_bytes = _BAND_BYTES.get(scores.device.type, _BAND_BYTES['cuda'])
        row_bytes = math.prod(scores.shape[:2]) * classes.shape[2] * scores.element_size()
        band_rows = max(1, band_bytes // max(1, row_bytes))  # a batch of no images has 0 bytes
    with torch.autocast(scores.device.type, enabled=False):
        rows, cols = (
            _resizing(cells, size, align_corners, scores)
            for cells, size in zip(scores.shape[2:], classes.shape[1:])
        )
        bands = zip(rows.split(band_rows), classes.split(band_rows, dim=1))
        losses = [
            checkpoint(
                _band_loss, scores, band, cols, own, use_reentrant=False, preserve_rng_state=False
            )
            for band, own in bands
        ]
    return torch.stack(losses).sum()


def _resizing(cells: int, size: int, align_corners: bool, like: Tensor) -> Tensor:
    """[size, cells], what bilinear resizing along one axis, being linear, multiplies with."""
    unit = torch.eye(cells, dtype=like.dtype, device=like.device)[None, None]
    return F.interpolate(unit, (size, cells), mode='bilinear', align_corners=align_corners)[0, 0]


def _band_loss(scores: Tensor, rows: Tensor, cols: Tensor, classes: Tensor) -> Tensor:
    """Of the label rows [n, h] that `rows` resizes to; classes are theirs, [B, n, W]."""
    return summed_cross_entropy(rows @ scores @ cols.t(), classes)


def summed_cross_entropy(scores: Tensor, classes: Tensor) -> Tensor:
    """Sum over pixels of the cross entropy.

    The same number as `F.cross_entropy(reduction='sum')`, which over maps has no deterministic form
    on CUDA.

    Args:
        scores (Tensor): [B, K, H, W].
        classes (Tensor): int64 [B, H, W] in 0..K, K for pixels that don't count.

    Returns:
        Tensor: Scalar.
    """
    return F.cross_entropy(scores, classes, ignore_index=scores.shape[1], reduction='none').sum()
