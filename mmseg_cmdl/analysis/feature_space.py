"""Pixels of chosen classes in two dimensions: sampling, PCA, then t-SNE or UMAP."""

import importlib
from typing import Any, Dict, NamedTuple, Optional, Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..utils import Reservoir

METHODS = ('tsne', 'umap', 'pca')


class PixelSample:
    """An even sample of the pixels of each class over any number of images (reservoir sampling).

    Every pixel of a class has the same chance, and the same seed gives the same sample.

    Args:
        classes (Sequence[int]): Labels that are sampled.
        size (int): Pixels held of each class at most.
        seed (int): Seed of the draws.
    """

    def __init__(self, classes: Sequence[int], size: int, seed: int = 0):
        self.classes, self.size, self.seed = list(classes), size, seed
        self._held: Optional[Reservoir] = None

    @property
    def seen(self) -> Dict[int, int]:
        """Number of points that were drawn from, of each label."""
        counts = [0] * len(self.classes) if self._held is None else self._held.counts.tolist()
        return dict(zip(self.classes, counts))

    def add(self, index: int, features: Tensor, labels: Tensor) -> None:
        """
        Args:
            index (int): Which image.
            features (Tensor): [h, w, Z].
            labels (Tensor): [h, w].
        """
        for i, k in enumerate(self.classes):
            places = torch.nonzero(labels == k)
            self._draw(i, index, places, features[places[:, 0], places[:, 1]])

    def _draw(self, i: int, index: int, places: Tensor, vectors: Tensor) -> None:
        """Of the i-th class, the points at `places` [M, 2] of an image, with features [M, Z]."""
        where = torch.full_like(places[:, :1], index)
        rows = torch.cat([where.double(), places.double(), vectors.double()], dim=1)
        if self._held is None:
            self._held = Reservoir(
                len(self.classes), self.size, rows.shape[1], self.seed, torch.float64
            )
        self._held.add(rows, torch.full((len(rows),), i))

    def arrays(self) -> tuple:
        """Features [M, Z], labels [M], and image, row and column [M, 3]."""
        held = self._held
        if held is None or not held.counts.any():
            raise InputError('no pixel of the chosen classes is in the images')
        samples = [held.sample(i).numpy() for i in range(len(self.classes))]
        rows = np.concatenate(samples)
        labels = np.repeat(self.classes, [len(sample) for sample in samples])
        return rows[:, 3:], labels, rows[:, :3].astype(int)


class MeanSample(PixelSample):
    """As PixelSample, of one point for each class and image: the mean of the class's pixels there.

    These are the points of MCIBI, fig. 3. Their row and column are -1.
    """

    def add(self, index: int, features: Tensor, labels: Tensor) -> None:
        """As in the base class."""
        finite = features.isfinite().all(dim=-1)
        for i, k in enumerate(self.classes):
            pixels = features[(labels == k) & finite].double()
            if len(pixels):
                self._draw(i, index, torch.full((1, 2), -1), pixels.mean(dim=0, keepdim=True))


class Embedded(NamedTuple):
    """Points of one model in the plane."""

    points: np.ndarray  # [M, 2]
    labels: np.ndarray  # [M]
    places: np.ndarray  # image, row, column [M, 3]
    distributions: Optional[np.ndarray]  # [D, 2]
    distribution_labels: Optional[np.ndarray]  # class and index [D, 2]
    silhouette: Optional[float]  # of the classes in the space before


def _need(module: str, package: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f'{what} needs {package}, which is not installed ({error}); run: pip install {package}'
        ) from None


def check_method(method: str) -> None:
    """Says what a method needs, before any work is done.

    Raises:
        InputError: scikit-learn or umap-learn is missing.
    """
    _need('sklearn', 'scikit-learn', 'the feature space')
    if method == 'umap':
        _need('umap', 'umap-learn', '--method umap')


def reduce_to_plane(
    features: np.ndarray,
    method: str = 'tsne',
    seed: int = 0,
    perplexity: float = 30,
) -> np.ndarray:
    """PCA to 50 channels, then t-SNE or UMAP. The same seed gives the same points.

    Args:
        features (np.ndarray): [M, Z].
        method (str): 'tsne', 'umap' or 'pca'.
        seed (int): Seed of the method.
        perplexity (float): Perplexity of t-SNE, or neighbours of UMAP; lowered where points are
            few.

    Returns:
        np.ndarray: [M, 2].

    Raises:
        InputError: scikit-learn or umap-learn is missing, or there are fewer than 5 points.
    """
    if method not in METHODS:
        raise ValueError(f'method must be one of {METHODS}, got {method!r}')
    if len(features) < 5:
        raise InputError(
            f'{len(features)} points are too few for a picture of the feature '
            'space; choose classes with more pixels, or more images'
        )
    decomposition = _need('sklearn.decomposition', 'scikit-learn', 'the feature space')
    channels = 2 if method == 'pca' else min(50, *features.shape)
    reduced = decomposition.PCA(channels, random_state=seed).fit_transform(features)
    if method == 'pca':
        return reduced
    neighbours = max(2.0, min(perplexity, (len(features) - 1) / 3))
    if method == 'umap':
        umap = _need('umap', 'umap-learn', '--method umap')
        # with a seed it takes one job, and warns where that isn't said
        return umap.UMAP(n_neighbors=round(neighbours), random_state=seed, n_jobs=1).fit_transform(
            reduced
        )
    manifold = _need('sklearn.manifold', 'scikit-learn', 'the feature space')
    return manifold.TSNE(perplexity=neighbours, init='pca', random_state=seed).fit_transform(
        reduced
    )


def silhouette(features: np.ndarray, labels: np.ndarray) -> Optional[float]:
    """How much nearer pixels are to their class than to the next one, in -1..1, in the full space.

    None with fewer than two classes.
    """
    if len(np.unique(labels)) < 2 or len(labels) <= len(np.unique(labels)):
        return None
    return float(
        _need('sklearn.metrics', 'scikit-learn', 'the feature space').silhouette_score(
            features, labels
        )
    )


def embed_sample(
    sample: PixelSample,
    distributions: Optional[Tensor],
    normalize: bool,
    method: str,
    seed: int,
    perplexity: float,
) -> Embedded:
    """A sample, and the bank's distributions of its classes, in one plane.

    Args:
        sample (PixelSample): Filled.
        distributions (Tensor, optional): [K, N, Z], in the space of the features.
        normalize (bool): Bring features to length 1.
        method (str): See :func:`reduce_to_plane`, as the rest.
        seed (int): Seed of the method.
        perplexity (float): Perplexity of t-SNE.
    """
    features, labels, places = sample.arrays()
    if normalize:
        features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    score = silhouette(features, labels)
    rows, marks = features, None
    if distributions is not None:
        vectors = distributions[sample.classes].double().cpu().numpy()
        count = vectors.shape[1]
        marks = np.array([(k, n) for k in sample.classes for n in range(count)])
        rows = np.concatenate([features, vectors.reshape(-1, vectors.shape[-1])])
    points = reduce_to_plane(rows, method, seed, perplexity)
    bank = None if marks is None else points[len(features) :]
    return Embedded(points[: len(features)], labels, places, bank, marks, score)
