"""Sums of the pixels of each class, plain and weighted by distance from the class's memory.

Source: MCIBI, eq. 8 to 10. Pixels are those of the feature map, or those of the label map with
features brought to them bilinearly. In the second case no feature is ever formed at label size:
interpolation is linear, so a sum over label pixels is a sum over feature cells with weights added
up, and length and product of an interpolated feature follow from lengths and products of the
cells around it. What is held at label size is a few scalars a pixel, for one image at a time.
"""

from typing import NamedTuple, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...utils import BilinearTaps, has_class

# A cosine between vectors of no length is 0.
_SHORTEST = 1e-12


class ClassSums(NamedTuple):
    """Sums over one rank's pixels, in one tensor, so that one message adds up all ranks.

    Attributes:
        packed (Tensor): Flat; the others are views of it.
        plain, weighted (Tensor): [K, C + 1], sums of the features and, last, of their weights: 1,
            and 1 - cosine with the class's memory.
        labelled, left_out (Tensor): Scalars: pixels with a class; of these, pixels whose feature
            has no finite square, which count in no sum.
    """

    packed: Tensor
    plain: Tensor
    weighted: Tensor
    labelled: Tensor
    left_out: Tensor

    @classmethod
    def zeros(cls, memory: Tensor) -> 'ClassSums':
        """Sums of no pixel, for a memory [K, C]."""
        rows, columns = memory.shape[0], memory.shape[1] + 1
        packed = memory.new_zeros(2 * rows * columns + 2)
        plain, weighted = packed[:-2].view(2, rows, columns)
        return cls(packed, plain, weighted, packed[-2], packed[-1])


def class_sums(features: Tensor, labels: Tensor, memory: Tensor, ignore_index: int) -> ClassSums:
    """Sums over the pixels of each class.

    Args:
        features (Tensor): [P, C].
        labels (Tensor): [P].
        memory (Tensor): [K, C], of the same type as `features`.
        ignore_index (int): Label of pixels without a class. So is any label outside 0..K-1.

    Returns:
        ClassSums: In the type of `memory`.
    """
    sums = ClassSums.zeros(memory)
    num_classes, channels = memory.shape
    known = has_class(labels, num_classes, ignore_index)
    squares = features.square().sum(dim=1)
    finite = squares.isfinite()
    used = known & finite
    features = torch.where(used[:, None], features, 0)
    classes = torch.where(used, labels.long(), 0)

    products = (features * memory.index_select(0, classes)).sum(dim=1)
    lengths = memory.norm(dim=1).index_select(0, classes) * squares.sqrt()
    weights = torch.where(used, _distance(products, lengths), 0)
    for table, weight in ((sums.plain, used.to(memory.dtype)), (sums.weighted, weights)):
        table[:, :channels].index_add_(0, classes, features * weight[:, None])
        table[:, channels].scatter_add_(0, classes, weight)
    sums.labelled.copy_(known.sum())
    sums.left_out.copy_((known & ~finite).sum())
    return sums


def _distance(products: Tensor, lengths: Tensor) -> Tensor:
    """1 - cosine (MCIBI eq. 9), never negative by rounding."""
    return (1 - products / lengths.clamp(min=_SHORTEST)).clamp_(min=0, max=2)


def upsampled_class_sums(
    features: Tensor, labels: Tensor, memory: Tensor, ignore_index: int, align_corners: bool = False
) -> ClassSums:
    """:func:`class_sums` of the features bilinearly resized to the labels.

    Equals resizing first, without ever holding the [B, C, H, W] map or a part of it.

    Args:
        features (Tensor): [B, C, h, w].
        labels (Tensor): [B, H, W].
        memory, ignore_index: As for :func:`class_sums`.
        align_corners (bool): As for `torch.nn.functional.interpolate`. Defaults to False.

    Returns:
        ClassSums: In the type of `memory`.
    """
    sums = ClassSums.zeros(memory)
    rows, cols = (
        _Axis(labels.shape[i + 1], features.shape[i + 2], align_corners, features) for i in range(2)
    )
    for feature_map, label_map in zip(features, labels):
        _add_image(sums, feature_map, label_map, memory, ignore_index, rows, cols)
    return sums


class _Axis(BilinearTaps):
    """:class:`BilinearTaps`, and what the square of an interpolated value is made of.

    Attributes:
        squares (Tensor): [n, m + 1] and `crossed` [n, m], factors of the squares of the cells and
            of the products of neighbours in the square of the interpolated value.
    """

    def __init__(self, size: int, cells: int, align_corners: bool, like: Tensor):
        super().__init__(size, cells, align_corners, like)
        one = self.one_hot[0]
        self.squares = (
            F.pad(one, (0, 1)) * self.weights[0].square()[:, None]
            + F.pad(one, (1, 0)) * self.weights[1].square()[:, None]
        )
        self.crossed = one * (2 * self.weights[0] * self.weights[1])[:, None]


def _add_image(
    sums: ClassSums,
    features: Tensor,
    labels: Tensor,
    memory: Tensor,
    ignore_index: int,
    rows: _Axis,
    cols: _Axis,
) -> None:
    """Adds the sums of one image [C, h, w], [H, W]."""
    num_classes, channels = memory.shape
    height, width = features.shape[1:]
    known = has_class(labels, num_classes, ignore_index)
    finite_cells = features.square().sum(dim=0).isfinite()
    features = torch.where(finite_cells, features, 0)
    # a pixel is bad if a cell that it takes a share of is
    bad = rows.matrix @ (~finite_cells).to(features.dtype) @ cols.matrix.t() > 0
    used = known & ~bad

    starts = torch.where(used, labels.long(), 0) * (height * width)
    corners = [
        (starts + (y * width)[:, None] + x, wy[:, None] * wx)
        for y, wy in zip((rows.first, rows.second), rows.weights)
        for x, wx in zip((cols.first, cols.second), cols.weights)
    ]
    cells = features.flatten(1)  # [C, hw]
    of_cells = (memory @ cells).view(-1)  # of each class's memory and each cell
    products = sum((of_cells[index] * share for index, share in corners), memory.new_zeros(()))
    lengths = _interpolated_squares(features, rows, cols).clamp_(min=0).sqrt_()
    lengths *= memory.norm(dim=1)[torch.where(used, labels.long(), 0)]
    weights = _distance(products, lengths)

    # how much of each cell the pixels of each class take, plain and weighted
    for table, weight in ((sums.plain, used.to(features.dtype)), (sums.weighted, weights * used)):
        shares = memory.new_zeros(num_classes * height * width)
        for index, share in corners:
            shares.scatter_add_(0, index.flatten(), (share * weight).flatten())
        shares = shares.view(num_classes, height * width)
        table[:, :channels] += shares @ cells.t()
        table[:, channels] += shares.sum(dim=1)
    sums.labelled.add_(known.sum())
    sums.left_out.add_((known & bad).sum())


def _interpolated_squares(features: Tensor, rows: _Axis, cols: _Axis) -> Tensor:
    """Squared length [H, W] of the interpolated features, from products of neighbouring cells."""
    padded = F.pad(features[None], (0, 1, 0, 1), mode='replicate')[0]

    def dot(first: Tuple, second: Tuple) -> Tensor:
        return (padded[(slice(None), *first)] * padded[(slice(None), *second)]).sum(dim=0)

    every, here, right = slice(None), slice(None, -1), slice(1, None)
    squares = dot((every, every), (every, every))
    beside = dot((every, here), (every, right))
    below = dot((here, every), (right, every))
    across = (dot((here, here), (right, right)) + dot((here, right), (right, here))) / 2
    return (
        rows.squares @ squares @ cols.squares.t()
        + rows.squares @ beside @ cols.crossed.t()
        + rows.crossed @ below @ cols.squares.t()
        + rows.crossed @ across @ cols.crossed.t()
    )
