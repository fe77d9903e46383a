from .distribution_figures import (MappedImage, draw_class, draw_distribution_maps, draw_usage)
from .distribution_map import color_distributions, color_labels
from .style import distinct_colors, figure_to_array, new_figure, save_figure

__all__ = ['MappedImage', 'color_distributions', 'color_labels', 'distinct_colors', 'draw_class',
           'draw_distribution_maps', 'draw_usage', 'figure_to_array', 'new_figure', 'save_figure']
