"""Class local and class global consistency losses on pixel-to-distribution similarities.

Source: MDRL, section 3.5, eq. 12 to 15. `<i, d>` there is *minus* the cosine, so
`exp(-<i, d> / tau)` is `exp(+cos / tau)`.
"""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import MODELS
from ...utils import (
    all_reduce_sum_,
    at_least_float32,
    check_finite,
    class_rows,
    global_mean,
    global_sum,
    labels_at_feature_size,
    layer_norm,
    of_own_class,
)
from .formulated_loss import FormulatedLoss
from .resized_cross_entropy import resized_cross_entropy, summed_cross_entropy


def class_balanced_weights(classes: Tensor, num_classes: int) -> Tensor:
    """Weights with which pixels sum to a mean per class first, then over present classes.

    Counts run over all ranks: one collective.

    Args:
        classes (Tensor): [P] in 0..K, K for pixels without a class.
        num_classes (int): K, the number of classes.

    Returns:
        Tensor: float64 [P], 1 / (count of the class x present classes); 0 without a class.
    """
    counts = torch.zeros(num_classes + 1, dtype=torch.float64, device=classes.device)
    counts.scatter_add_(0, classes, torch.ones_like(classes, dtype=torch.float64))
    counts = all_reduce_sum_(counts)[:-1]
    share = 1 / (counts * (counts > 0).sum())
    share = torch.where(counts > 0, share, 0.0)
    return F.pad(share, (0, 1))[classes]


@MODELS.register_module()
class ClassLocalConsistencyLoss(FormulatedLoss):
    """L_clcl: cross entropy over each class's nearest distribution (MDRL, eq. 12 to 14).

    ``s[i, c] = max_n cos(i, d[c, n])`` (minus the smallest distance), ``L = -log softmax(s)[y]``.

    Args:
        formulation (str): 'released' normalises the K scores of each pixel (LayerNorm over classes,
            affine) and resizes them bilinearly, corners aligned, to label size; 'paper' works at
            feature size, with nearest labels, plainly. Defaults to 'released'.
        loss_weight (float): alpha in MDRL eq. 18; 0.01 in the paper. Defaults to 1.0.
        num_classes (int, optional): K, for the affine LayerNorm of 'released'; the head gives it.
            Without it the LayerNorm has no weights.
        loss_name (str): Defaults to 'loss_clcl'.

    The mean is over the labelled pixels of all ranks; without any the loss and its gradient are 0.
    """

    def __init__(
        self,
        formulation: str = 'released',
        loss_weight: float = 1.0,
        num_classes: Optional[int] = None,
        loss_name: str = 'loss_clcl',
    ):
        super().__init__(formulation, loss_weight, loss_name)
        self.norm = None
        if formulation == 'released' and num_classes is not None:
            self.norm = nn.LayerNorm(num_classes)

    def class_scores(self, similarity: Tensor) -> Tensor:
        """Similarity [..., K, N] to the scores [..., K] of each pixel's classes (MDRL eq. 13)."""
        scores = at_least_float32(similarity.max(dim=-1).values)
        if self.formulation == 'paper':
            return scores
        if self.norm is None:
            return F.layer_norm(scores, scores.shape[-1:])
        return layer_norm(scores, self.norm)

    def forward(self, similarity: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
        """
        Args:
            similarity (Tensor): [B, h, w, K, N].
            labels (Tensor): [B, H, W], any size.
            ignore_index (int): Label that doesn't count. Defaults to 255.

        Returns:
            Tensor: Scalar, times `loss_weight`.
        """
        scores = self.class_scores(similarity)
        num_classes = scores.shape[-1]
        size = labels.shape[-2:] if self.formulation == 'released' else scores.shape[1:3]
        scores = scores.permute(0, 3, 1, 2)
        labels = labels_at_feature_size(labels, size)
        classes = class_rows(labels, num_classes, ignore_index)
        if self.formulation == 'released':
            total = resized_cross_entropy(scores, classes, align_corners=True)
        else:  # MDRL eq. 14
            total = summed_cross_entropy(scores, classes)
        return self.loss_weight * global_mean(total, (classes < num_classes).sum())


@MODELS.register_module()
class ClassGlobalConsistencyLoss(FormulatedLoss):
    """L_cgcl: contrast of the N distributions of the true class with all others (MDRL, eq. 15).

    With A the sum of ``exp(cos / tau)`` over the N distributions of the true class and B over all
    others, at feature size with nearest labels:

    - 'paper': ``-log(A / (A + B))``, mean over labelled pixels;
    - 'released': for each positive n by itself ``-log(e_n / (e_n + B))`` without temperature, mean
      over the pixels of a class, then over positives and over present classes.

    Args:
        temperature (float): tau, in units of a cosine; unused by 'released'. Defaults to 0.5.
        formulation (str): 'paper' or 'released'. Defaults to 'released'.
        loss_weight (float): beta in MDRL eq. 18; 0.05 in the paper. Defaults to 1.0.
        loss_name (str): Defaults to 'loss_cgcl'.

    Means run over the pixels of all ranks; without any the loss and its gradient are 0.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        formulation: str = 'released',
        loss_weight: float = 1.0,
        loss_name: str = 'loss_cgcl',
    ):
        super().__init__(formulation, loss_weight, loss_name)
        check_finite(self, temperature=temperature)
        if temperature <= 0:
            raise ValueError(
                f'ClassGlobalConsistencyLoss: temperature must be positive, got {temperature}'
            )
        self.temperature = temperature

    def forward(self, similarity: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
        """
        Args:
            similarity (Tensor): [B, h, w, K, N].
            labels (Tensor): [B, H, W], any size.
            ignore_index (int): Label that doesn't count. Defaults to 255.

        Returns:
            Tensor: Scalar, times `loss_weight`.
        """
        num_classes = similarity.shape[-2]
        labels = labels_at_feature_size(labels, similarity.shape[1:3])
        classes = class_rows(labels, num_classes, ignore_index).flatten()
        labelled = classes < num_classes
        scores = at_least_float32(similarity).flatten(0, 2)  # [P, K, N]
        if self.formulation == 'paper':  # MDRL eq. 15
            scores = scores / self.temperature
            positives = of_own_class(scores, classes).logsumexp(dim=1)  # log A
            losses = scores.flatten(1).logsumexp(dim=1) - positives  # log(A + B) - log A
            total = torch.where(labelled, losses, 0.0).sum()
            return self.loss_weight * global_mean(total, labelled.sum())

        positives = of_own_class(scores, classes)  # [P, N]
        own_class = classes[:, None] == torch.arange(num_classes, device=classes.device)
        negatives = scores.masked_fill(own_class[..., None], -torch.inf)
        negatives = negatives.flatten(1).logsumexp(dim=1)  # log B; -inf where K is 1
        losses = torch.logaddexp(positives, negatives[:, None]) - positives
        losses = losses.mean(dim=1) * class_balanced_weights(classes, num_classes).to(losses)
        return self.loss_weight * global_sum(torch.where(labelled, losses, 0.0).sum())

    def extra_repr(self) -> str:
        return f'temperature={self.temperature}, {super().extra_repr()}'
