"""Numbers behind the figures of tools/analysis, as functions to call from a notebook."""

from . import command_line
from .class_statistics import ClassStatistics, measure_statistics, off_diagonal_mean
from .complexity import measure_complexity
from .distribution_usage import (
    Assignment,
    DistributionUsage,
    NearestPatches,
    assign,
    entropy,
)
from .examined_model import ExaminedModel, Example, chosen_classes
from .feature_space import (
    Embedded,
    MeanSample,
    PixelSample,
    embed_sample,
    reduce_to_plane,
    silhouette,
)
from .pixel_similarity import feature_at, pixel_relation
from .prediction_scores import class_iou, confusion_matrix, mean_iou, pixel_accuracy
from .whole_picture import (
    ClassDistributions,
    WholePicture,
    main_distributions,
    nearest_places,
    see_whole,
)

__all__ = [
    'Assignment',
    'ClassDistributions',
    'ClassStatistics',
    'DistributionUsage',
    'Embedded',
    'ExaminedModel',
    'Example',
    'MeanSample',
    'NearestPatches',
    'PixelSample',
    'WholePicture',
    'assign',
    'chosen_classes',
    'class_iou',
    'command_line',
    'confusion_matrix',
    'embed_sample',
    'entropy',
    'feature_at',
    'main_distributions',
    'mean_iou',
    'measure_complexity',
    'measure_statistics',
    'nearest_places',
    'off_diagonal_mean',
    'pixel_accuracy',
    'pixel_relation',
    'reduce_to_plane',
    'see_whole',
    'silhouette',
]
