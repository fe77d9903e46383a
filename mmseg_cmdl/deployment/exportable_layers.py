"""Layers of others in operations that export with dynamic sizes; the same numbers.

The ONNX exporter knows `nn.AdaptiveAvgPool2d` only for output size 1 or for sizes fixed at export:
PSP's 2x2, 3x3 and 6x6 would tie the file to one image size. mmcv's `CrissCrossAttention` adds
sizes to a diagonal matrix and multiplies by einsum, which torch.export can follow only for some
backbones.
"""

from typing import Any, Optional

import torch
from mmcv.ops import CrissCrossAttention
from torch import Tensor, nn


def pooling_matrix(size: int, bins: int, like: Tensor) -> Tensor:
    """Weights [bins, size] with which each bin averages its part of a line of `size` pixels.

    Bin i covers the pixels ``floor(i * size / bins)`` to ``ceil((i + 1) * size / bins) - 1``, as in
    `F.adaptive_avg_pool2d`; neighbouring bins may share a pixel.
    """
    pixels = torch.arange(size, device=like.device)
    bin_numbers = torch.arange(bins, device=like.device)[:, None]
    # whole numbers throughout: pixel p is in bin i if p * bins < (i + 1) * size and
    # (p + 1) * bins > i * size
    inside = (pixels * bins < (bin_numbers + 1) * size) & ((pixels + 1) * bins > bin_numbers * size)
    weights = inside.to(like.dtype)
    return weights / weights.sum(dim=1, keepdim=True)


class AdaptivePoolingByMatrices(nn.Module):
    """`nn.AdaptiveAvgPool2d` without its operator.

    Args:
        output_size (tuple[int]): Bins per column and per row.
    """

    def __init__(self, output_size: Any) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to [B, C, *output_size]."""
        rows, columns = (
            pooling_matrix(size, bins, x) for size, bins in zip(x.shape[2:], self.output_size)
        )
        return rows @ x @ columns.t()


class CrissCrossByMatrices(nn.Module):
    """mmcv's `CrissCrossAttention`: each pixel attends to its row and its column.

    Args:
        attention (CrissCrossAttention): Whose convs this takes.
    """

    def __init__(self, attention: CrissCrossAttention):
        super().__init__()
        self.query_conv = attention.query_conv
        self.key_conv = attention.key_conv
        self.value_conv = attention.value_conv
        self.gamma = attention.gamma

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same."""
        rows = x.shape[2]
        query, key, value = self.query_conv(x), self.key_conv(x), self.value_conv(x)
        in_column = query.permute(0, 3, 2, 1) @ key.permute(0, 3, 1, 2)  # [B, w, h, h]
        positions = torch.arange(rows, device=x.device)
        # a pixel meets itself in its row already
        itself = positions[:, None] == positions
        in_column = in_column.masked_fill(itself, float('-inf'))
        in_column = in_column.transpose(1, 2).contiguous()  # [B, h, w, h]
        in_row = query.permute(0, 2, 3, 1) @ key.permute(0, 2, 1, 3)  # [B, h, w, w]
        attention = torch.cat([in_column, in_row], dim=3).softmax(dim=3)
        from_column = attention[..., :rows].transpose(1, 2) @ value.permute(0, 3, 2, 1)
        from_row = attention[..., rows:] @ value.permute(0, 2, 3, 1)  # [B, h, w, C]
        # contiguous, so that torch.export need not compare strides of dynamic sizes
        attended = from_column.transpose(1, 2).contiguous() + from_row
        return self.gamma(attended.permute(0, 3, 1, 2).contiguous()) + x


def _exportable(module: nn.Module) -> Optional[nn.Module]:
    """What stands for `module` in an export, None if it stays."""
    if type(module) is CrissCrossAttention:
        return CrissCrossByMatrices(module)
    if isinstance(module, nn.AdaptiveAvgPool2d):
        size: Any = module.output_size
        size = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
        if None not in size and size != (1, 1):
            return AdaptivePoolingByMatrices(size)
    return None


def make_exportable_(model: nn.Module) -> None:
    """Put these layers in the place of those they stand for, in place."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            other = _exportable(child)
            if other is not None:
                setattr(module, name, other)
