from .class_figures import draw_channel_variance, draw_class_bars, draw_class_dependency
from .climate_poster import EarthMap, ShownDistribution, draw_climate_poster
from .complexity_figure import draw_complexity
from .distribution_figures import MappedImage, draw_class, draw_distribution_maps, draw_usage
from .distribution_map import color_distributions, color_labels
from .feature_space_figure import draw_feature_space
from .pixel_relation_figure import draw_pixel_relation
from .prediction_page import PredictedImage, color_errors, draw_predictions, prediction_page
from .style import distinct_colors, figure_to_array, new_figure, save_figure

__all__ = [
    'EarthMap',
    'MappedImage',
    'PredictedImage',
    'ShownDistribution',
    'color_distributions',
    'color_errors',
    'color_labels',
    'distinct_colors',
    'draw_channel_variance',
    'draw_class',
    'draw_class_bars',
    'draw_class_dependency',
    'draw_climate_poster',
    'draw_complexity',
    'draw_distribution_maps',
    'draw_feature_space',
    'draw_pixel_relation',
    'draw_predictions',
    'draw_usage',
    'figure_to_array',
    'new_figure',
    'prediction_page',
    'save_figure',
]
