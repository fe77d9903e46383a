"""How compact classes are in a feature space, and how far apart: sums over any number of images.

Source: DGCW, eq. 8 (class average features and their variance per channel); CAR, eq. 5 and fig. 4
(similarity of class centres), which its losses lower together with the variance inside classes.
"""

from typing import Any, Optional

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from .command_line import image_indices, progress
from .examined_model import ExaminedModel

SIMILARITIES = ('cosine', 'softmax', 'dot')


class ClassStatistics:
    """Counts, sums and squares of the features of each class, in float64.

    Memory is K * C numbers, however many images are added.

    Args:
        num_classes (int): K, the number of classes.
        normalize (bool): Bring each feature to length 1 first, so that numbers of different
            models can be compared. Defaults to True.
    """

    def __init__(self, num_classes: int, normalize: bool = True):
        self.num_classes = num_classes
        self.normalize = normalize
        self.counts = torch.zeros(num_classes, dtype=torch.float64)
        self.sums: Optional[Tensor] = None
        self.squares = torch.zeros(num_classes, dtype=torch.float64)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """
        Args:
            features (Tensor): [..., C]. Pixels whose feature isn't finite are left out.
            labels (Tensor): [...]; what is outside 0..K-1 counts nowhere.
        """
        features, labels = features.flatten(0, -2), labels.flatten()
        used = (labels >= 0) & (labels < self.num_classes) & features.isfinite().all(dim=1)
        features, labels = features[used].double(), labels[used]
        if self.normalize:
            features = F.normalize(features, dim=1)
        if self.sums is None:
            self.sums = features.new_zeros(self.num_classes, features.shape[1])
        self.sums.index_add_(0, labels, features)
        self.squares.index_add_(0, labels, features.square().sum(dim=1))
        self.counts.index_add_(0, labels, torch.ones_like(labels, dtype=torch.float64))

    @property
    def present(self) -> np.ndarray:
        """Bool [K], classes that had a pixel."""
        return (self.counts > 0).numpy()

    @property
    def centers(self) -> np.ndarray:
        """Class average features A (DGCW, eq. 8) [K, C]; NaN for classes that had no pixel."""
        if self.sums is None:
            raise ValueError('no features have been added yet')
        return (self.sums / self.counts[:, None]).numpy()

    @property
    def intra_class_variance(self) -> np.ndarray:
        """Mean squared distance of the pixels of each class to its centre [K]; NaN where none."""
        centers = torch.from_numpy(self.centers)
        variance = self.squares / self.counts - centers.square().sum(dim=1)
        return variance.clamp(min=0).numpy()

    @property
    def relative_variance(self) -> Optional[float]:
        """Variance of all pixels around their class's centre over that around their common mean:
        0 where each class is a point, 1 where centres coincide. None where all pixels do.
        """
        if self.sums is None:
            return None
        present = torch.from_numpy(self.present)
        counts, sums, squares = self.counts[present], self.sums[present], self.squares.sum()
        within = squares - (sums.square().sum(dim=1) / counts).sum()
        overall = squares - sums.sum(dim=0).square().sum() / counts.sum()
        return float((within / overall).clamp(0, 1)) if overall > 1e-12 * squares else None

    @property
    def center_distances(self) -> np.ndarray:
        """Euclidean distance between class centres [K, K]; NaN for classes that had no pixel."""
        centers = self.centers
        return np.linalg.norm(centers[:, None] - centers[None], axis=-1)

    @property
    def channel_variance(self) -> np.ndarray:
        """Class-wise variance V (DGCW, after eq. 8), that of the class average features among the
        classes, per channel [C].
        """
        return self.centers[self.present].var(axis=0)

    def similarity(self, kind: str = 'cosine') -> np.ndarray:
        """Similarity of class centres [K, K] (CAR, fig. 4); NaN for classes that had no pixel.

        Args:
            kind (str): 'cosine'; 'dot', the product as it is; 'softmax', rows of
                ``softmax(mu^T mu / sqrt(C))`` over the classes that have pixels, as in CAR's loss
                between centres.
        """
        centers = self.centers
        if kind == 'cosine':
            centers = centers / np.linalg.norm(centers, axis=1, keepdims=True)
            return centers @ centers.T
        products = centers @ centers.T
        if kind == 'dot':
            return products
        if kind != 'softmax':
            raise ValueError(f'similarity must be one of {SIMILARITIES}, got {kind!r}')
        products = products / np.sqrt(centers.shape[1])
        weights = np.exp(products - np.nanmax(products, axis=1, initial=-np.inf, keepdims=True))
        weights = weights / np.nansum(weights, axis=1, keepdims=True)
        return np.where(np.isnan(products), np.nan, weights)

    def summary(self) -> dict:
        """The numbers of the compactness table, means over the classes that have pixels.

        Returns:
            dict[str, float]: `intra_class_variance`; `relative_variance` and the mean and largest
            cosine of two class centres, `center_similarity` and `largest_center_similarity`, which
            don't depend on a scale of the features; `center_distance`, mean over pairs of classes;
            `nearest_center_distance`, mean over classes; `separation`, half of the nearest distance
            in units of the class's standard deviation, mean over classes. None for what needs two
            classes where there is one.
        """
        present = self.present
        variance = self.intra_class_variance[present]
        summary = dict.fromkeys(
            (
                'intra_class_variance',
                'relative_variance',
                'center_similarity',
                'largest_center_similarity',
                'center_distance',
                'nearest_center_distance',
                'separation',
            )
        )
        summary.update(intra_class_variance=mean_or_none(variance))
        if present.sum() > 1:
            pairs = np.ix_(present, present)
            others = ~np.eye(present.sum(), dtype=bool)
            cosines = self.similarity('cosine')[pairs][others]
            distances = self.center_distances[pairs]
            nearest = np.where(others, distances, np.inf).min(axis=1)
            summary.update(
                relative_variance=self.relative_variance,
                center_similarity=float(cosines.mean()),
                largest_center_similarity=float(cosines.max()),
                center_distance=float(distances[others].mean()),
                nearest_center_distance=float(nearest.mean()),
                separation=float((nearest / 2 / np.sqrt(np.maximum(variance, 1e-12))).mean()),
            )
        return summary


def mean_or_none(values: np.ndarray) -> Optional[float]:
    """Mean of what isn't NaN, None where nothing is."""
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else None


def off_diagonal_mean(matrix: np.ndarray) -> Optional[float]:
    """Mean over pairs of different rows; NaN entries don't count."""
    return mean_or_none(matrix[~np.eye(len(matrix), dtype=bool)])


def measure_statistics(
    model: ExaminedModel,
    features: str = 'classifier',
    normalize: bool = True,
    max_images: Optional[int] = None,
    also: Any = None,
) -> ClassStatistics:
    """Class statistics of a model over its data set.

    Args:
        model (ExaminedModel): The model with its data.
        features (str): See :meth:`ExaminedModel.examples`. Defaults to 'classifier', what enters
            `conv_seg`: with CAR what its losses work on, without it what they would.
        normalize (bool): See :class:`ClassStatistics`.
        max_images (int, optional): Largest number of images, spread evenly; all by default.
        also: Gets the same pixels by its own `add`, as a :class:`DistributionUsage`, in this pass.

    Raises:
        InputError: No image has a labelled pixel.
    """
    statistics = ClassStatistics(len(model.classes), normalize)
    indices = image_indices(len(model.dataset), max_images)
    for example in progress(model.examples(indices, features), len(indices), model.name):
        statistics.add(example.features, example.labels)
        if also is not None:
            also.add(example.features, example.labels)
    if not statistics.present.any():
        raise InputError(f'no image of the split that {model.name} was shown has a labelled pixel')
    return statistics
