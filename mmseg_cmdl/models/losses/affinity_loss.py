"""Affinity loss: whether a predicted prior knows which pixels are of one class.

Source: "Context Prior for Scene Segmentation" (CPNet, CVPR 2020), section 3.1.
"""

import torch
import torch.nn.functional as F
from mmseg.registry import MODELS
from torch import Tensor, nn

from ...utils import class_rows, global_mean


@MODELS.register_module()
class AffinityLoss(nn.Module):
    """Of the prior map P [n, n] of an image against its ideal affinity map A, a_ij = 1 where pixels
    i and j are of one class and 0 elsewhere.

    ``L_p = unary_weight * L_u + global_weight * L_g``. L_u is the mean binary cross entropy of all
    pairs. L_g is minus the mean over pixels j of three logarithms: precision
    ``sum_i a p / sum_i p``, recall ``sum_i a p / sum_i a`` and specificity
    ``sum_i (1 - a)(1 - p) / sum_i (1 - a)``.

    NOTE: not in the paper: a pair with an ignored pixel counts nowhere; pixels without any pixel of
    another class have no specificity, its logarithm is 0; sums are held above 1e-6.

    Means run over the pixels of all ranks; 0, with a graph, where there are none.

    Args:
        unary_weight (float): lambda_u. Defaults to 1.0.
        global_weight (float): lambda_g. Defaults to 1.0.
        loss_weight (float): lambda_p. Defaults to 1.0.
        loss_name (str): Defaults to 'loss_affinity'.
    """

    def __init__(
        self,
        unary_weight: float = 1.0,
        global_weight: float = 1.0,
        loss_weight: float = 1.0,
        loss_name: str = 'loss_affinity',
    ):
        super().__init__()
        if 'loss' not in loss_name:
            raise ValueError(
                'AffinityLoss: loss_name must contain "loss" to be added to the objective, '
                f'got {loss_name!r}'
            )
        self.unary_weight, self.global_weight = unary_weight, global_weight
        self.loss_weight = loss_weight
        self._loss_name = loss_name

    @property
    def loss_name(self) -> str:
        """Key in the dictionary of losses."""
        return self._loss_name

    def forward(
        self, logits: Tensor, labels: Tensor, num_classes: int, ignore_index: int = 255
    ) -> Tensor:
        """
        Args:
            logits (Tensor): [B, n, n], row j what is said of pixel j; P is its sigmoid.
            labels (Tensor): [B, n], at the pixels of the prior.
            num_classes (int): K.
            ignore_index (int): Label that doesn't count. Defaults to 255.

        Returns:
            Tensor: Scalar, times `loss_weight`.
        """
        classes = class_rows(labels, num_classes, ignore_index)
        known = classes < num_classes
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            pairs = (known[:, :, None] & known[:, None]).to(logits)
            same = (classes[:, :, None] == classes[:, None]).to(logits) * pairs
            other = pairs - same

            entropy = F.binary_cross_entropy_with_logits(logits, same, reduction='none')
            unary = global_mean((entropy * pairs).sum(), pairs.sum())

            prior = logits.sigmoid()
            hits = (same * prior).sum(dim=2)
            claimed, own = (pairs * prior).sum(dim=2), same.sum(dim=2)
            refused, others = (other * (1 - prior)).sum(dim=2), other.sum(dim=2)
            terms = _log_ratio(hits, claimed) + _log_ratio(hits, own)
            terms = terms + torch.where(others > 0, _log_ratio(refused, others), 0)
            rows = known.to(terms)
            total = -global_mean((terms * rows).sum(), rows.sum())
        return self.loss_weight * (self.unary_weight * unary + self.global_weight * total)


def _log_ratio(part: Tensor, whole: Tensor) -> Tensor:
    return part.clamp(min=1e-6).log() - whole.clamp(min=1e-6).log()
