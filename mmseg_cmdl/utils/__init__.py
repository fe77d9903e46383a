from .bilinear_taps import BilinearTaps
from .class_labels import class_rows, has_class
from .configs import as_list, registered_class
from .distributed import all_reduce_sum_, all_reduce_together, global_mean, global_sum
from .label_resizing import labels_at_feature_size
from .last_head import last_head
from .max_over_middle import max_over_middle
from .precision import at_least_float32, layer_norm
from .row_sums import row_sums

__all__ = [
    'BilinearTaps',
    'all_reduce_sum_',
    'all_reduce_together',
    'as_list',
    'at_least_float32',
    'class_rows',
    'global_mean',
    'global_sum',
    'has_class',
    'labels_at_feature_size',
    'last_head',
    'layer_norm',
    'max_over_middle',
    'registered_class',
    'row_sums',
]
