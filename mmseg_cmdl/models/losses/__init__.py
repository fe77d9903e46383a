from .affinity_loss import AffinityLoss
from .class_aware_loss import (
    InterClassCenterToCenterLoss,
    InterClassCenterToPixelLoss,
    IntraClassCenterToPixelLoss,
    class_centers,
)
from .class_consistency_loss import ClassGlobalConsistencyLoss, ClassLocalConsistencyLoss
from .fused_class_aware import can_fuse_class_aware, fused_class_aware
from .fused_class_consistency import can_fuse, fused_class_consistency
from .resized_cross_entropy import resized_cross_entropy

__all__ = [
    'AffinityLoss',
    'ClassGlobalConsistencyLoss',
    'ClassLocalConsistencyLoss',
    'InterClassCenterToCenterLoss',
    'InterClassCenterToPixelLoss',
    'IntraClassCenterToPixelLoss',
    'can_fuse',
    'can_fuse_class_aware',
    'class_centers',
    'fused_class_aware',
    'fused_class_consistency',
    'resized_cross_entropy',
]
