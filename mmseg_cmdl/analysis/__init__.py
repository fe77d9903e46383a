"""Numbers behind the figures of tools/analysis, as functions to call from a notebook."""
from . import command_line
from .class_statistics import ClassStatistics
from .distribution_usage import DistributionUsage, NearestPatches, assign, entropy
from .examined_model import Example, ExaminedModel, chosen_classes

__all__ = ['ClassStatistics', 'DistributionUsage', 'Example', 'ExaminedModel', 'NearestPatches',
           'assign', 'chosen_classes', 'command_line', 'entropy']
