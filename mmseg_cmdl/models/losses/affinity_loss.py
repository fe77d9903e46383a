"""Affinity loss: which pixels of an image are of the same class (CPNet).

Source: Yu et al., Context Prior for Scene Segmentation, CVPR 2020, section 3.1, eq. 1 to 6.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...registry import MODELS
from ...utils import at_least_float32, check_finite, global_mean
from .formulated_loss import WeightedLoss

# Sums of probabilities are held above this before their logarithm.
_SMALLEST_SUM = 1e-12


@MODELS.register_module()
class AffinityLoss(WeightedLoss):
    """Compares a predicted affinity p [N, N] with the ideal one, a_ij = [y_i = y_j].

    CPNet eq. 1 to 6:

    ``unary_weight`` times the mean binary cross entropy over pairs, plus ``global_weight`` times
    the mean over pixels j of ``-(log precision + log recall + log specificity)`` of row j:

    - precision ``sum_i a p / sum_i p``, recall ``sum_i a p / sum_i a``,
    - specificity ``sum_i (1 - a)(1 - p) / sum_i (1 - a)``, left out where all pixels are alike.

    Pixels with `ignore_index` take part in no pair, and means are over all ranks. (The released
    code makes a class of them. It leaves a pixel's pair with itself out of recall and of the
    numerator of precision, whose denominator has it.)

    Args:
        unary_weight (float): lambda_u. Defaults to 1.0.
        global_weight (float): lambda_g. Defaults to 1.0.
        loss_weight (float): lambda_p. Defaults to 1.0.
        loss_name (str): Defaults to 'loss_prior'.

    Raises:
        ValueError: `loss_name` doesn't contain 'loss', so it would not be added to the objective.
    """

    def __init__(
        self,
        unary_weight: float = 1.0,
        global_weight: float = 1.0,
        loss_weight: float = 1.0,
        loss_name: str = 'loss_prior',
    ):
        super().__init__(loss_weight, loss_name)
        check_finite(self, unary_weight=unary_weight, global_weight=global_weight)
        self.unary_weight = unary_weight
        self.global_weight = global_weight

    def forward(self, logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
        """
        Args:
            logits (Tensor): [B, N, N], before the sigmoid; row j is pixel j.
            labels (Tensor): [B, N], at feature size.
            ignore_index (int): Label that doesn't count. Defaults to 255.

        Returns:
            Tensor: Scalar, times `loss_weight`.
        """
        if logits.shape != (*labels.shape, labels.shape[-1]):
            raise ValueError(
                'AffinityLoss: logits [B, N, N] and labels [B, N] are expected, got '
                f'{list(logits.shape)} and {list(labels.shape)}'
            )
        with torch.autocast(logits.device.type, enabled=False):
            logits = at_least_float32(logits)
            known = labels != ignore_index
            pairs = known[:, :, None] & known[:, None, :]
            alike = (labels[:, :, None] == labels[:, None, :]) & pairs
            unlike = pairs & ~alike
            unary = torch.where(pairs, F.softplus(logits) - logits * alike, 0.0).sum()

            predicted = torch.where(pairs, logits.sigmoid(), 0.0)
            hits = torch.where(alike, predicted, 0.0).sum(dim=2)
            rejected = torch.where(unlike, logits.neg().sigmoid(), 0.0).sum(dim=2)
            num_alike, num_unlike = (mask.sum(dim=2).to(logits) for mask in (alike, unlike))
            terms = _log(hits, known) - _log(predicted.sum(dim=2), known)  # precision
            terms = terms + _log(hits, known) - _log(num_alike, known)  # recall
            some = num_unlike > 0
            terms = terms + _log(rejected, some) - _log(num_unlike, some)  # specificity

            unary = global_mean(unary, pairs.sum())
            overall = global_mean(-terms.sum(), known.sum())
        return self.loss_weight * (self.unary_weight * unary + self.global_weight * overall)


def _log(sums: Tensor, counts: Tensor) -> Tensor:
    """log of the sums that count, 0 elsewhere, with a finite gradient."""
    return torch.where(counts, sums, 1.0).clamp(min=_SMALLEST_SUM).log()
