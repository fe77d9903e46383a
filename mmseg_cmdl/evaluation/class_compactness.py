"""How compact the classes are in the features that enter a classifier, and how far apart.

What class-aware regularization is for (CAR, section 3.2 and 3.3; its figure 4 draws the similarity
of class centres).
"""

from typing import Dict, Iterable, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..utils import class_rows, labels_at_feature_size


class Compactness(NamedTuple):
    """All numbers are over present classes; the last three don't depend on the features' scale."""

    pixels: int
    classes: int
    intra_variance: float  # mean of (x - mu[y])^2 over pixels and channels
    relative_variance: float  # the same over the variance of all pixels around their common mean
    center_similarity: float  # mean cosine of two different class centres
    largest_similarity: float  # largest cosine of two different class centres


class ClassCompactness:
    """Sums over pixels, from which variances within and similarities between classes follow.

    Args:
        num_classes (int): K.
        ignore_index (int): Label that doesn't count. Defaults to 255.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255):
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.counts = self.sums = self.squares = None

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """
        Args:
            features (Tensor): [B, C, h, w].
            labels (Tensor): [B, H, W]; nearest ones are taken at feature size.
        """
        K, C = self.num_classes, features.shape[1]
        if self.sums is None:
            self.counts, self.squares = (
                features.new_zeros(K + 1, dtype=torch.float64) for _ in range(2)
            )
            self.sums = features.new_zeros(K + 1, C, dtype=torch.float64)
        labels = labels_at_feature_size(labels, features.shape[2:]).flatten()
        rows = class_rows(labels, K, self.ignore_index).to(features.device)
        pixels = features.permute(0, 2, 3, 1).flatten(0, 2).double()
        self.counts.index_add_(0, rows, torch.ones_like(rows, dtype=torch.float64))
        self.sums.index_add_(0, rows, pixels)
        self.squares.index_add_(0, rows, pixels.square().sum(dim=1))

    def centers(self) -> Tensor:
        """Centres [k, C] of the k present classes."""
        present = self.counts[:-1] > 0
        return self.sums[:-1][present] / self.counts[:-1][present, None]

    def compute(self) -> Compactness:
        """
        Raises:
            ValueError: Fewer than two classes were seen.
        """
        if self.counts is None or (self.counts[:-1] > 0).sum() < 2:
            raise ValueError('at least two classes must be present to compare them')
        present = self.counts[:-1] > 0
        counts, centers = self.counts[:-1][present], self.centers()
        total, channels = counts.sum(), centers.shape[1]
        squares = self.squares[:-1].sum()
        within = squares - (counts * centers.square().sum(dim=1)).sum()
        mean = (counts[:, None] * centers).sum(dim=0) / total
        around_mean = squares - total * mean.square().sum()
        directions = F.normalize(centers, dim=1)
        cosines = directions @ directions.t()
        others = ~torch.eye(len(centers), dtype=torch.bool, device=cosines.device)
        return Compactness(
            int(total),
            len(centers),
            float(within / (total * channels)),
            float(within / around_mean),
            float(cosines[others].mean()),
            float(cosines[others].max()),
        )


@torch.no_grad()
def measure_compactness(model: nn.Module, batches: Iterable[Dict[str, list]]) -> Compactness:
    """Compactness of the features that enter `conv_seg` (of the last head) of a segmentor.

    With CAR these are what its losses work on, without it what they would.

    Args:
        model (nn.Module): A segmentor; it is put into evaluation mode.
        batches (Iterable[dict]): What its dataloader gives: `inputs` and `data_samples`.

    Returns:
        Compactness: Of all labelled pixels.
    """
    head = model.decode_head
    head = head[-1] if isinstance(head, nn.ModuleList) else head
    meter = ClassCompactness(
        head.num_classes, -1 if head.ignore_index is None else head.ignore_index
    )
    entered = []
    handle = head.conv_seg.register_forward_pre_hook(
        lambda module, inputs: entered.append(inputs[0])
    )
    model.eval()
    try:
        for batch in batches:
            data = model.data_preprocessor(batch, False)
            samples = data['data_samples']
            for image, sample in zip(data['inputs'], samples):
                entered.clear()
                model.encode_decode(image[None], [_meta(sample, image)])
                meter.update(entered[-1], sample.gt_sem_seg.data)
    finally:
        handle.remove()
    return meter.compute()


def _meta(sample: BaseDataElement, image: Tensor) -> dict:
    size = tuple(image.shape[-2:])
    return dict(sample.metainfo, img_shape=size, pad_shape=size)
