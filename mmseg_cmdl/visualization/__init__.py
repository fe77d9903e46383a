from .distribution_map import color_distributions, color_labels

__all__ = ['color_distributions', 'color_labels']
