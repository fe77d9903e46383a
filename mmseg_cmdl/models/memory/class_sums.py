"""Sums of the pixels of each class, plain and weighted by distance from the class's memory.

Source: MCIBI, eq. 8 to 10. Pixels are those of the feature map, or those of the label map with
features brought to them bilinearly. In the second case no feature is ever formed at label size:
interpolation is linear, so a sum over label pixels is a sum over feature cells with weights added
up, and length and product of an interpolated feature follow from lengths and products of the
cells around it. What is held at label size is a few scalars a pixel.
"""

from typing import NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...utils import has_class

# A cosine between vectors of no length is 0.
_SHORTEST = 1e-12


class ClassSums(NamedTuple):
    """Sums over one rank's pixels, in one tensor, so that one message adds up all ranks.

    Attributes:
        packed (Tensor): Flat; the others are views of it.
        plain (Tensor): [K, C + 1], sums of the features and, last, the number of pixels.
        weighted (Tensor, optional): [K, C + 1], the same with weights, 1 - cosine with the class's
            memory, whose sum is last; None where no memory was given.
        labelled, left_out (Tensor): Scalars: pixels with a class; of these, pixels whose feature
            has no finite square, which count in no sum.
    """

    packed: Tensor
    plain: Tensor
    weighted: Optional[Tensor]
    labelled: Tensor
    left_out: Tensor

    @classmethod
    def zeros(cls, num_classes: int, channels: int, like: Tensor, weighted: bool) -> 'ClassSums':
        """Sums of no pixel, of the type of `like`."""
        tables = like.new_zeros((1 + weighted) * num_classes * (channels + 1) + 2)
        plain, *others = tables[:-2].view(1 + weighted, num_classes, channels + 1)
        return cls(tables, plain, others[0] if weighted else None, tables[-2], tables[-1])


def class_sums(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    ignore_index: int,
    memory: Optional[Tensor] = None,
    align_corners: bool = False,
) -> ClassSums:
    """Sums over the pixels of each class.

    Args:
        features (Tensor): [P, C]; or [B, C, h, w], which are taken bilinearly resized to the label
            maps. That equals resizing them first, without ever holding the [B, C, H, W] map or a
            part of it.
        labels (Tensor): [P]; or [B, H, W].
        num_classes (int): K, the number of classes.
        ignore_index (int): Label of pixels without a class. So is any label outside 0..K-1.
        memory (Tensor, optional): [K, C], of the type of `features`, for the weighted sums; None
            for none.
        align_corners (bool): Whether the resizing aligns corners. Defaults to False.

    Returns:
        ClassSums: In the type of `features`.
    """
    sums = ClassSums.zeros(num_classes, features.shape[1], features, memory is not None)
    if features.dim() == 2:
        _add_pixels(sums, features, labels, memory, ignore_index)
    else:
        _add_maps(sums, features, labels, memory, ignore_index, align_corners)
    return sums


def _add_pixels(
    sums: ClassSums, features: Tensor, labels: Tensor, memory: Optional[Tensor], ignore_index: int
) -> None:
    """Adds the sums of pixels [P, C], [P]."""
    num_classes, channels = len(sums.plain), features.shape[1]
    known = has_class(labels, num_classes, ignore_index)
    squares = features.square().sum(dim=1)
    finite = squares.isfinite()
    used = known & finite
    features = torch.where(used[:, None], features, 0)
    classes = torch.where(used, labels.long(), 0)

    tables = [(sums.plain, used.to(features.dtype))]
    if memory is not None and sums.weighted is not None:
        products = (features * memory.index_select(0, classes)).sum(dim=1)
        lengths = memory.norm(dim=1).index_select(0, classes) * squares.sqrt()
        tables.append((sums.weighted, torch.where(used, _distance(products, lengths), 0)))
    for table, weight in tables:
        table[:, :channels].index_add_(0, classes, features * weight[:, None])
        table[:, channels].scatter_add_(0, classes, weight)
    sums.labelled.copy_(known.sum())
    sums.left_out.copy_((known & ~finite).sum())


def _distance(products: Tensor, lengths: Tensor) -> Tensor:
    """1 - cosine (MCIBI eq. 9), never negative by rounding."""
    return (1 - products / lengths.clamp(min=_SHORTEST)).clamp_(min=0, max=2)


class _Axis:
    """Bilinear resizing along one axis: the two cells that each resized value lies between.

    Same values as `F.interpolate(mode='bilinear')`, with positions in float64.

    Args:
        size (int): n, length after resizing.
        cells (int): m, length before.
        align_corners (bool): As for `F.interpolate`.
        like (Tensor): Gives the weights their type and device.

    Attributes:
        first, second (Tensor): Indices [n] of the two; equal beyond the last cell's centre.
        weights (tuple[Tensor]): [n] of each.
        matrix (Tensor): [n, m], what the resizing multiplies with.
        squares (Tensor): [n, m + 1] and `crossed` [n, m], factors of the squares of the cells and
            of the products of neighbours in the square of the interpolated value.
    """

    def __init__(self, size: int, cells: int, align_corners: bool, like: Tensor):
        position = torch.arange(size, dtype=torch.float64, device=like.device)
        if align_corners:
            position = position * ((cells - 1) / max(size - 1, 1))
        else:
            position = ((position + 0.5) * (cells / size) - 0.5).clamp_(min=0)
        first = position.floor().clamp_(max=cells - 1)
        fraction = (position - first).to(like.dtype)
        self.first = first.long()
        self.second = (self.first + 1).clamp(max=cells - 1)
        self.weights = (1 - fraction, fraction)
        every = torch.arange(cells, device=like.device)  # F.one_hot would wait for the device
        here, beside = (
            (every == cell[:, None]).to(like.dtype) for cell in (self.first, self.second)
        )
        here_weight, beside_weight = (weight[:, None] for weight in self.weights)
        self.matrix = here * here_weight + beside * beside_weight
        self.squares = F.pad(here, (0, 1)) * here_weight.square()
        self.squares += F.pad(here, (1, 0)) * beside_weight.square()
        self.crossed = here * (2 * here_weight * beside_weight)


def _add_maps(
    sums: ClassSums,
    features: Tensor,
    labels: Tensor,
    memory: Optional[Tensor],
    ignore_index: int,
    align_corners: bool,
) -> None:
    """Adds the sums of maps [B, C, h, w], [B, H, W]."""
    num_classes, (images, channels, height, width) = len(sums.plain), features.shape
    rows, cols = (
        _Axis(size, cells, align_corners, features)
        for size, cells in zip(labels.shape[1:], (height, width))
    )
    known = has_class(labels, num_classes, ignore_index)
    finite_cells = features.square().sum(dim=1).isfinite()
    features = torch.where(finite_cells[:, None], features, 0)
    # a pixel is bad if a cell that it takes a share of is
    bad = rows.matrix @ (~finite_cells).to(features.dtype) @ cols.matrix.t() > 0
    used = known & ~bad

    classes = torch.where(used, labels.long(), 0)
    cells = features.transpose(0, 1).flatten(1)  # [C, Bhw]
    starts = classes * cells.shape[1]
    starts += torch.arange(images, device=labels.device)[:, None, None] * (height * width)
    corners = [
        (starts + (y * width)[:, None] + x, wy[:, None] * wx)
        for y, wy in zip((rows.first, rows.second), rows.weights)
        for x, wx in zip((cols.first, cols.second), cols.weights)
    ]
    tables = [(sums.plain, used.to(features.dtype))]
    if memory is not None and sums.weighted is not None:
        of_cells = (memory @ cells).view(-1)  # of each class's memory and each cell
        products = sum((of_cells[index] * share for index, share in corners), cells.new_zeros(()))
        lengths = _interpolated_squares(features, rows, cols).clamp_(min=0).sqrt_()
        lengths *= memory.norm(dim=1)[classes]
        tables.append((sums.weighted, _distance(products, lengths) * used))

    # how much of each cell the pixels of each class take, plain and weighted
    for table, weight in tables:
        shares = cells.new_zeros(num_classes, cells.shape[1])
        for index, share in corners:
            shares.view(-1).scatter_add_(0, index.flatten(), (share * weight).flatten())
        table[:, :channels] = shares @ cells.t()
        table[:, channels] = shares.sum(dim=1)
    sums.labelled.copy_(known.sum())
    sums.left_out.copy_((known & bad).sum())


def _interpolated_squares(features: Tensor, rows: _Axis, cols: _Axis) -> Tensor:
    """Squared length [B, H, W] of the interpolated features, from products of neighbours."""
    padded = F.pad(features, (0, 1, 0, 1), mode='replicate')

    def dot(first: Tuple, second: Tuple) -> Tensor:
        return (padded[(..., *first)] * padded[(..., *second)]).sum(dim=1)

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
