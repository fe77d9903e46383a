from .class_consistency_loss import ClassGlobalConsistencyLoss, ClassLocalConsistencyLoss
from .fused_class_consistency import can_fuse, fused_class_consistency

__all__ = [
    'ClassGlobalConsistencyLoss', 'ClassLocalConsistencyLoss', 'can_fuse',
    'fused_class_consistency'
]
