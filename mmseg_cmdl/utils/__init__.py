from .class_labels import class_rows, has_class, labels_at_feature_size, of_own_class, row_sums
from .configs import (
    add_loss,
    as_list,
    check_choice,
    check_counts,
    check_finite,
    check_flags,
    did_you_mean,
    registered_class,
    warn_without_effect,
)
from .distributed import all_reduce_sum_, all_reduce_together, global_mean, global_sum
from .entropy import entropy_of_counts
from .precision import at_least_float32, layer_norm
from .reservoir import Reservoir
from .segmentors import last_head, unwrapped

__all__ = [
    'Reservoir',
    'add_loss',
    'all_reduce_sum_',
    'all_reduce_together',
    'as_list',
    'at_least_float32',
    'check_choice',
    'check_counts',
    'check_finite',
    'check_flags',
    'class_rows',
    'did_you_mean',
    'entropy_of_counts',
    'global_mean',
    'global_sum',
    'has_class',
    'labels_at_feature_size',
    'last_head',
    'layer_norm',
    'of_own_class',
    'registered_class',
    'row_sums',
    'unwrapped',
    'warn_without_effect',
]
