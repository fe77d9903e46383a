"""Which distribution of its class each pixel belongs to, how evenly they are used, and which real
pixels lie nearest to each.
"""

from typing import List, NamedTuple, Tuple

import numpy as np
import torch
from torch import Tensor

from ..utils import entropy_of_counts, of_own_class

# Similarities formed at a time.
_CHUNK_ELEMENTS = 1 << 23


class Assignment(NamedTuple):
    """The distribution of each pixel of one image; -1 and NaN where a pixel has no class."""

    distributions: Tensor  # int64 [h, w]: nearest distribution of the pixel's own class
    similarity: Tensor  # [h, w]: cosine to it
    nearest_class: Tensor  # int64 [h, w]: class of the nearest distribution of all


def assign(embeddings: Tensor, classes: Tensor, distributions: Tensor) -> Assignment:
    """Nearest distribution of each pixel, in its own class and among all.

    Args:
        embeddings (Tensor): Unit vectors [h, w, Z].
        classes (Tensor): int64 [h, w]; what is outside 0..K-1 has no class.
        distributions (Tensor): Unit vectors [K, N, Z].

    Returns:
        Assignment: Maps [h, w].
    """
    num_classes, num_distributions, _ = distributions.shape
    flat, own = embeddings.flatten(0, 1), classes.flatten()
    rows = distributions.flatten(0, 1).to(flat)
    parts = []
    for part, labels in zip(*(x.split(max(1, _CHUNK_ELEMENTS // len(rows))) for x in (flat, own))):
        scores = (part @ rows.t()).unflatten(1, (num_classes, num_distributions))
        similarity, chosen = of_own_class(scores, labels.clamp(min=0)).max(dim=1)
        labelled = (labels >= 0) & (labels < num_classes) & similarity.isfinite()
        parts.append(
            (
                torch.where(labelled, chosen, -1),
                torch.where(labelled, similarity, torch.nan),
                torch.where(labelled, scores.amax(dim=2).argmax(dim=1), -1),
            )
        )
    return Assignment(*(torch.cat(x).view(classes.shape) for x in zip(*parts)))


def entropy(counts: np.ndarray) -> np.ndarray:
    """Entropy of shares along the last axis in units of its largest value, ln N: 1 for equal
    shares, 0 where one takes all; NaN where there are no counts. 1 for N = 1.
    """
    return entropy_of_counts(torch.as_tensor(np.asarray(counts))).numpy()


class DistributionUsage:
    """How many pixels of its class each distribution has.

    Args:
        distributions (Tensor): Unit vectors [K, N, Z].
        dead_share (float): A distribution counts as dead if it has less than this fraction of an
            equal share of the pixels of its class. Defaults to 0.01.
        duplicate_cosine (float): Two distributions of a class count as duplicates if their cosine
            is at least this. Defaults to 0.99.
    """

    def __init__(
        self, distributions: Tensor, dead_share: float = 0.01, duplicate_cosine: float = 0.99
    ):
        self.distributions = distributions.detach().cpu().float()
        self.dead_share = dead_share
        self.duplicate_cosine = duplicate_cosine
        shape = self.distributions.shape[:2]
        self.counts = np.zeros(shape, dtype=np.int64)
        self.similarity = np.zeros(shape)
        self.correct = np.zeros(shape, dtype=np.int64)

    def add(self, embeddings: Tensor, classes: Tensor) -> Assignment:
        """Counts one image.

        Args:
            embeddings (Tensor): Unit vectors [h, w, Z].
            classes (Tensor): int64 [h, w].

        Returns:
            Assignment: The distribution of each pixel.
        """
        assignment = assign(embeddings, classes, self.distributions)
        used = (assignment.distributions >= 0).numpy()
        own, chosen = classes.numpy()[used], assignment.distributions.numpy()[used]
        place = (own, chosen)
        np.add.at(self.counts, place, 1)
        np.add.at(self.similarity, place, assignment.similarity.numpy()[used])
        np.add.at(self.correct, place, assignment.nearest_class.numpy()[used] == own)
        return assignment

    @property
    def shares(self) -> np.ndarray:
        """Part of its class's pixels that each distribution has [K, N]; NaN for absent classes."""
        with np.errstate(invalid='ignore'):
            return self.counts / self.counts.sum(axis=1, keepdims=True)

    @property
    def dead(self) -> np.ndarray:
        """Bool [K, N], False for absent classes."""
        return self.shares < self.dead_share / self.counts.shape[1]

    def duplicates(self) -> List[List[tuple]]:
        """For each class its pairs of duplicates, (n, m, cosine) with n < m."""
        cosines = torch.einsum('knz,kmz->knm', self.distributions, self.distributions).numpy()
        pairs = np.argwhere(np.triu(cosines >= self.duplicate_cosine, k=1))
        found: List[list] = [[] for _ in cosines]
        for k, n, m in pairs.tolist():
            found[k].append((n, m, float(cosines[k, n, m])))
        return found

    def numbers(self, classes: List[str]) -> dict:
        """All numbers by the names of the classes, for JSON.

        Returns:
            dict: `classes`: per class its pixels, share and mean similarity of each distribution,
            entropy of the shares (1 is even), effective number of distributions (N ** entropy),
            dead ones, duplicates, and the percentage of pixels whose nearest distribution of all is
            of their own class; `all`: means over classes, and that percentage over all pixels.
        """
        spread, shares, dead = entropy(self.counts), self.shares, self.dead
        duplicates, size = self.duplicates(), self.counts.shape[1]
        with np.errstate(invalid='ignore', divide='ignore'):
            similarity = self.similarity / self.counts
            accuracy = 100 * self.correct.sum(axis=1) / self.counts.sum(axis=1)
        by_class = {}
        for k, name in enumerate(classes):
            by_class[name] = dict(
                pixels=self.counts[k].sum(),
                pixels_of_distribution=self.counts[k],
                share=shares[k],
                mean_similarity=similarity[k],
                entropy=spread[k],
                effective_distributions=size ** spread[k],
                dead=np.flatnonzero(dead[k]),
                duplicates=duplicates[k],
                nearest_distribution_accuracy=accuracy[k],
            )
        total, seen = self.counts.sum(), self.counts.sum(axis=1) > 0
        overall = dict(
            pixels=total,
            classes_with_pixels=seen.sum(),
            entropy=spread[seen].mean() if seen.any() else None,
            effective_distributions=(size ** spread[seen]).mean() if seen.any() else None,
            dead=dead.sum(),
            duplicates=sum(map(len, duplicates)),
            nearest_distribution_accuracy=100 * self.correct.sum() / total if total else None,
        )
        return dict(
            all=overall,
            classes=by_class,
            num_distributions=size,
            dead_share=self.dead_share,
            duplicate_cosine=self.duplicate_cosine,
        )


class Patch(NamedTuple):
    """The surroundings of one pixel."""

    similarity: float
    image: int  # index in the split
    position: tuple  # row and column at feature size
    pixels: np.ndarray  # RGB [size, size, 3]; white beyond the border of the image


class NearestPatches:
    """For each distribution the real pixels nearest to it, at most one of an image.

    Holds K * N * count patches.

    Args:
        num_classes (int): K, the number of classes.
        num_distributions (int): N, the number of distributions of each class.
        count (int): Patches per distribution.
        size (int): Side of a patch in pixels of the image as the model sees it.
    """

    def __init__(self, num_classes: int, num_distributions: int, count: int, size: int):
        self.count, self.size = count, size
        self.num_distributions = num_distributions
        self._found: List[List[Patch]] = [[] for _ in range(num_classes * num_distributions)]

    def add(
        self, image: np.ndarray, index: int, classes: Tensor, assignment: Assignment, stride: tuple
    ) -> None:
        """
        Args:
            image (np.ndarray): RGB [H, W, 3].
            index (int): Which image.
            classes (Tensor): int64 [h, w].
            assignment (Assignment): The distributions of its pixels.
            stride (tuple[float, float]): Image pixels per feature.
        """
        chosen = assignment.distributions.flatten().numpy()
        used = np.flatnonzero(chosen >= 0)
        if not len(used):
            return
        group = classes.flatten().numpy()[used] * self.num_distributions + chosen[used]
        similarity = assignment.similarity.flatten().numpy()[used]
        order = np.lexsort((-used, similarity, group))  # the first of equal pixels comes last
        last = np.flatnonzero(np.append(np.diff(group[order]) != 0, True))
        width = assignment.distributions.shape[1]
        for i in order[last]:
            held, score = self._found[group[i]], float(similarity[i])
            if len(held) < self.count or score > held[-1].similarity:
                position = divmod(int(used[i]), width)
                patch = Patch(score, index, position, self._cut(image, position, stride))
                # stable: of equal ones the earlier image stays
                held.append(patch)
                held.sort(key=lambda patch: patch.similarity, reverse=True)
                del held[self.count :]

    def _cut(self, image: np.ndarray, position: Tuple[int, int], stride: tuple) -> np.ndarray:
        top, left = (round((p + 0.5) * s) - self.size // 2 for p, s in zip(position, stride))
        patch = np.full((self.size, self.size, 3), 255, np.uint8)
        rows = slice(max(top, 0), min(top + self.size, image.shape[0]))
        cols = slice(max(left, 0), min(left + self.size, image.shape[1]))
        patch[rows.start - top : rows.stop - top, cols.start - left : cols.stop - left] = image[
            rows, cols
        ]
        return patch

    def of(self, k: int, n: int) -> List[Patch]:
        """Patches of distribution n of class k, the nearest first."""
        return self._found[k * self.num_distributions + n]
