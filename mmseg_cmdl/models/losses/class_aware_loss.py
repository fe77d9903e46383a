"""Class centres of a batch and the three class-aware losses on them.

Source: CAR, section 3, eq. 1 to 14. In all of them `mu` [K, C] are the centres, zero for a class
that is absent, and pixels of all ranks count.
"""

import math
from typing import Any, Optional, Tuple, Union

import torch
from torch import Tensor

from ...registry import MODELS
from ...utils import (
    at_least_float32,
    check_choice,
    check_finite,
    check_flags,
    class_rows,
    global_mean,
    global_sum,
    row_sums,
)
from .formulated_loss import FormulatedLoss

# The released code holds what it squares or averages inside these.
_SUM_RANGE = (1e-7, 1 - 1e-7)
_SMALLEST_INTRA = 1e-5


def class_centers(
    features: Tensor, labels: Tensor, num_classes: int, ignore_index: int = 255
) -> Tuple[Tensor, Tensor]:
    """Mean feature of each class over the whole batch and all ranks (CAR, eq. 1), with gradient.

    One collective. The gradient is that of one process which holds the whole batch, for losses that
    every rank computes alike from the centres (see :func:`mmseg_cmdl.utils.global_sum`).

    Args:
        features (Tensor): [P, C]. Half precision is summed in float32.
        labels (Tensor): [P], of any integer type; what is outside 0..K-1 belongs to no class.
        num_classes (int): K, the number of classes.
        ignore_index (int): Label that doesn't count. Defaults to 255.

    Returns:
        tuple[Tensor]: Centres [K, C], zero for absent classes, and counts [K], both in float32 or
        better; the counts carry no gradient.
    """
    check_pixels(features, labels)
    with torch.autocast(features.device.type, enabled=False):
        features = at_least_float32(features)
        rows = class_rows(labels, num_classes, ignore_index)
        sums, counts = row_sums(features, rows, num_classes)
        sums = global_sum(torch.cat([sums, counts[:, None]], dim=1))  # one message
        counts = sums[:, -1].detach()
        return sums[:, :-1] / counts.clamp(min=1)[:, None], counts


def check_pixels(features: Tensor, labels: Tensor) -> None:
    """Refuse shapes other than [P, C] and [P]."""
    if features.dim() != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            'features [P, C] and one label for each of the P pixels are expected, '
            f'got {list(features.shape)} and {list(labels.shape)}. A map '
            '[B, C, h, w] is features.permute(0, 2, 3, 1).flatten(0, 2)'
        )


@MODELS.register_module()
class IntraClassCenterToPixelLoss(FormulatedLoss):
    """L_intra-c2p: pulls pixels to the centre of their class (CAR, eq. 2 and 3).

    - 'paper': mean over labelled pixels and channels of ``(mu[y] - x)^2``;
    - 'released': square of the mean of ``|mu[y] - x|``, clamped to at least 1e-5; ignored pixels
      add zero and count in the mean, so every pixel has a gradient of the same size.

    The gradient stops at the centre.

    Args:
        formulation (str): 'paper' or 'released'. Defaults to 'paper'.
        loss_weight (float): Defaults to 1.0.
        loss_name (str): Defaults to 'loss_intra_c2p'.
    """

    def __init__(
        self,
        formulation: str = 'paper',
        loss_weight: float = 1.0,
        loss_name: str = 'loss_intra_c2p',
    ):
        super().__init__(formulation, loss_weight, loss_name)

    def forward(
        self,
        features: Tensor,
        labels: Tensor,
        centers: Tensor,
        counts: Tensor,
        ignore_index: int = 255,
    ) -> Tensor:
        """
        Args:
            features (Tensor): [P, C].
            labels (Tensor): [P].
            centers (Tensor): [K, C], as :func:`class_centers` gives them.
            counts (Tensor): [K], unused.
            ignore_index (int): Label that doesn't count. Defaults to 255.

        Returns:
            Tensor: Scalar, times `loss_weight`.
        """
        check_pixels(features, labels)
        features = at_least_float32(features)
        num_classes = len(centers)
        rows = class_rows(labels, num_classes, ignore_index)
        own = centers.detach().index_select(0, rows.clamp(max=num_classes - 1))
        difference = own - features
        if self.formulation == 'paper':
            distances = difference.square().mean(dim=1)
        else:
            distances = difference.abs().mean(dim=1)
        labelled = rows < num_classes
        total = torch.where(labelled, distances, 0.0).sum()
        if self.formulation == 'paper':
            return self.loss_weight * global_mean(total, labelled.sum())
        mean = global_mean(total, torch.ones_like(labelled).sum())
        return self.loss_weight * mean.square().clamp(min=_SMALLEST_INTRA)


class InterClassLoss(FormulatedLoss):
    """What both losses between classes share: the threshold and who takes part in the softmax."""

    def __init__(self, threshold: float, classes: str, threshold_classes: str, *args: Any):
        super().__init__(*args)
        check_finite(self, threshold=threshold)
        if not 0 <= threshold <= 1:
            raise ValueError(f'{type(self).__name__}: threshold must be in [0, 1], got {threshold}')
        check_choice(self, ('all', 'present'), classes=classes, threshold_classes=threshold_classes)
        self.threshold = threshold
        self.classes = classes
        self.threshold_classes = threshold_classes

    def margin(self, counts: Tensor) -> Union[float, Tensor]:
        """What an entry of the softmax may have unpunished: threshold / (K - 1)."""
        if self.threshold_classes == 'all':
            return self.threshold / max(1, len(counts) - 1)
        return self.threshold / ((counts > 0).sum() - 1).clamp(min=1).to(counts)

    def absent(self, counts: Tensor) -> Optional[Tensor]:
        """Mask [K] of the classes left out of the softmax; None if all take part."""
        if self.classes == 'all':
            return None
        absent = counts <= 0
        return absent & ~absent.all()  # a softmax over no class at all would be NaN

    def beyond_margin(
        self, products: Tensor, own: Tensor, counts: Tensor, absent: Optional[Tensor]
    ) -> Tensor:
        """Sums [P] over the classes but the `own` (mask [P, K]) of what the softmax of `products`
        [P, K] has beyond the margin; `absent` is what :meth:`absent` gives.
        """
        if absent is not None:
            products = products.masked_fill(absent, -torch.inf)
        excess = (products.softmax(dim=1) - self.margin(counts)).clamp(min=0)
        return excess.masked_fill(own, 0).sum(dim=1)

    def extra_repr(self) -> str:
        return (
            f'threshold={self.threshold}, classes={self.classes!r}, '
            f'threshold_classes={self.threshold_classes!r}, {super().extra_repr()}'
        )


@MODELS.register_module()
class InterClassCenterToCenterLoss(InterClassLoss):
    """L_inter-c2c: pushes the centres of different classes apart (CAR, eq. 4 to 7).

    ``A = softmax(mu mu^T / sqrt(C))`` over classes. In each row the entries off the diagonal less
    ``threshold / (K - 1)``, where positive, are summed to ``d``. With the mean over rows,

    - 'paper': mean of ``d^2``;
    - 'released': square of the mean of ``d``, each d clamped to [1e-7, 1 - 1e-7].

    An absent class has a centre of zero; its row is a constant. Where no class is present at all
    the loss is that constant, without gradient.

    Args:
        threshold (float): epsilon_0, as a probability. Defaults to 0.5.
        formulation (str): 'paper' or 'released'. Defaults to 'paper'.
        loss_weight (float): Defaults to 1.0.
        classes (str): 'all' classes, absent ones with a centre of zero, make rows and columns, or
            only those 'present'. Defaults to 'all' (released code).
        threshold_classes (str): Whether K in `threshold / (K - 1)` counts 'all' classes or those
            'present'. Defaults to 'all'.
        both_sides (bool): Let the gradient pass through both centres of a product. Defaults to
            False: it stops on the column side (released code).
        loss_name (str): Defaults to 'loss_inter_c2c'.
    """

    def __init__(
        self,
        threshold: float = 0.5,
        formulation: str = 'paper',
        loss_weight: float = 1.0,
        classes: str = 'all',
        threshold_classes: str = 'all',
        both_sides: bool = False,
        loss_name: str = 'loss_inter_c2c',
    ):
        super().__init__(threshold, classes, threshold_classes, formulation, loss_weight, loss_name)
        check_flags(self, both_sides=both_sides)
        self.both_sides = both_sides

    def forward(
        self,
        features: Optional[Tensor],
        labels: Optional[Tensor],
        centers: Tensor,
        counts: Tensor,
        ignore_index: int = 255,
    ) -> Tensor:
        """
        Args:
            features (Tensor): Unused; the gradient reaches the features through the centres.
            labels (Tensor): Unused.
            centers (Tensor): [K, C], as :func:`class_centers` gives them.
            counts (Tensor): [K], of all ranks.
            ignore_index (int): Unused.

        Returns:
            Tensor: Scalar, times `loss_weight`. No collective: every rank has the same centres.
        """
        num_classes, channels = centers.shape
        columns = centers if self.both_sides else centers.detach()
        with torch.autocast(centers.device.type, enabled=False):
            products = centers @ columns.t() / math.sqrt(channels)
        itself = torch.eye(num_classes, dtype=torch.bool, device=products.device)
        absent = self.absent(counts)
        sums = self.beyond_margin(products, itself, counts, absent)
        if self.formulation == 'released':
            sums = sums.clamp(*_SUM_RANGE)
        else:
            sums = sums.square()
        if absent is None:
            mean = sums.mean()
        else:
            mean = torch.where(absent, 0.0, sums).sum() / (~absent).sum().clamp(min=1)
        # without a labelled pixel all centres are 0, and alike
        mean = mean * (counts > 0).any()
        return self.loss_weight * (mean.square() if self.formulation == 'released' else mean)


@MODELS.register_module()
class InterClassCenterToPixelLoss(InterClassLoss):
    """L_inter-c2p: pushes pixels from the centres of other classes (CAR, eq. 8 to 14).

    ``A = softmax(x mu^T / sqrt(C))`` over classes, the product with the own centre replaced by
    ``|mu[y]|^2``. The entries of other classes minus ``threshold / (K - 1)``, where positive, are
    summed to ``d`` for each pixel. With the mean over pixels,

    - 'paper': mean of ``d^2`` over labelled pixels;
    - 'released': square of the mean of ``d``, each d clamped to [1e-7, 1 - 1e-7]. NOTE: here an
      ignored pixel belongs to no class, so all classes are others to it, and **it has a gradient**.

    The gradient stops at the centres, and the own class's entry has none.

    Args:
        threshold (float): epsilon_1, as a probability. Defaults to 0.25.
        formulation (str): 'paper' or 'released'. Defaults to 'paper'.
        loss_weight (float): Defaults to 1.0.
        classes (str): 'all' classes, absent ones with a centre of zero, take part in the softmax,
            or only those 'present'. Defaults to 'all' (released code).
        threshold_classes (str): Whether K in `threshold / (K - 1)` counts 'all' classes or those
            'present'. Defaults to 'all'.
        scale (bool): Divide products by sqrt(C), as in CAR eq. 4 and in the released code; CAR eq.
            8 and 11 have no such division. Defaults to True.
        loss_name (str): Defaults to 'loss_inter_c2p'.
    """

    def __init__(
        self,
        threshold: float = 0.25,
        formulation: str = 'paper',
        loss_weight: float = 1.0,
        classes: str = 'all',
        threshold_classes: str = 'all',
        scale: bool = True,
        loss_name: str = 'loss_inter_c2p',
    ):
        super().__init__(threshold, classes, threshold_classes, formulation, loss_weight, loss_name)
        check_flags(self, scale=scale)
        self.scale = scale

    def forward(
        self,
        features: Tensor,
        labels: Tensor,
        centers: Tensor,
        counts: Tensor,
        ignore_index: int = 255,
    ) -> Tensor:
        """
        Args:
            features (Tensor): [P, C].
            labels (Tensor): [P].
            centers (Tensor): [K, C], as :func:`class_centers` gives them.
            counts (Tensor): [K], of all ranks.
            ignore_index (int): Label that doesn't count. Defaults to 255.

        Returns:
            Tensor: Scalar, times `loss_weight`.
        """
        check_pixels(features, labels)
        features, centers = at_least_float32(features), centers.detach()
        rows = class_rows(labels, len(centers), ignore_index)
        own_class = rows[:, None] == torch.arange(len(centers), device=rows.device)
        with torch.autocast(features.device.type, enabled=False):
            products = features @ centers.t()
        products = torch.where(own_class, centers.square().sum(dim=1), products)
        if self.scale:
            products = products / math.sqrt(features.shape[1])
        sums = self.beyond_margin(products, own_class, counts, self.absent(counts))
        labelled = rows < len(centers)
        if self.formulation == 'paper':
            total = torch.where(labelled, sums.square(), 0.0).sum()
            return self.loss_weight * global_mean(total, labelled.sum())
        total = sums.clamp(*_SUM_RANGE).sum()
        return self.loss_weight * global_mean(total, torch.ones_like(labelled).sum()).square()

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, scale={self.scale}'
