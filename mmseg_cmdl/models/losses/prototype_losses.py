"""Losses that pull a pixel to the prototype it was assigned to (ProtoSeg).

Source: ProtoSeg (Zhou et al., Rethinking Semantic Segmentation: A Prototype View, CVPR 2022), in
the form of its released code; the paper's text was not at hand.
"""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from ...registry import MODELS
from ...utils import at_least_float32, check_finite, global_mean
from .formulated_loss import WeightedLoss


class _PrototypeLoss(WeightedLoss):
    """A mean over the pixels of all ranks that have a target; 0, with a graph, without any."""

    def forward(self, similarity: Tensor, targets: Tensor) -> Tensor:
        """
        Args:
            similarity (Tensor): Cosine [B, h, w, K, N] of each pixel and each prototype.
            targets (Tensor): int64 [B, h, w], the pixel's prototype ``class * N + prototype``; -1
                for pixels that don't count, since every other number may be that of a prototype.

        Returns:
            Tensor: Scalar, times `loss_weight`.
        """
        scores = at_least_float32(similarity).flatten(-2).flatten(0, 2)  # [P, K * N]
        targets = targets.flatten()
        counted = targets >= 0
        values = torch.where(counted, self.of_each_pixel(scores, targets.clamp(min=0)), 0.0)
        return self.loss_weight * global_mean(values.sum(), counted.sum())

    @abstractmethod
    def of_each_pixel(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Loss [P] from cosines [P, K * N] and prototypes [P]."""


@MODELS.register_module()
class PixelPrototypeContrastLoss(_PrototypeLoss):
    """Cross entropy over all K * N prototypes, the target the pixel's own.

    Args:
        temperature (float): In units of a cosine. Defaults to 1.0, which the released code has; the
            paper is commonly quoted with 0.1.
        loss_weight (float): 0.01 in the released code. Defaults to 1.0.
        loss_name (str): Defaults to 'loss_ppc'.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self, temperature: float = 1.0, loss_weight: float = 1.0, loss_name: str = 'loss_ppc'
    ):
        super().__init__(loss_weight, loss_name)
        check_finite(self, temperature=temperature)
        if temperature <= 0:
            raise ValueError(
                f'PixelPrototypeContrastLoss: temperature must be positive, got {temperature}'
            )
        self.temperature = temperature

    def of_each_pixel(self, scores: Tensor, targets: Tensor) -> Tensor:
        """See the base class."""
        return F.cross_entropy(scores / self.temperature, targets, reduction='none')


@MODELS.register_module()
class PixelPrototypeDistanceLoss(_PrototypeLoss):
    """Squared distance ``(1 - cosine)^2`` of a pixel to its prototype.

    Args:
        loss_weight (float): 0.001 in the released code. Defaults to 1.0.
        loss_name (str): Defaults to 'loss_ppd'.
    """

    def __init__(self, loss_weight: float = 1.0, loss_name: str = 'loss_ppd'):
        super().__init__(loss_weight, loss_name)

    def of_each_pixel(self, scores: Tensor, targets: Tensor) -> Tensor:
        """See the base class."""
        return (1 - scores.gather(1, targets[:, None]).squeeze(1)).square()
