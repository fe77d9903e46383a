from .affinity_loss import AffinityLoss
from .class_aware_loss import (
    InterClassCenterToCenterLoss,
    InterClassCenterToPixelLoss,
    IntraClassCenterToPixelLoss,
    class_centers,
)
from .class_consistency_loss import ClassGlobalConsistencyLoss, ClassLocalConsistencyLoss
from .prototype_losses import PixelPrototypeContrastLoss, PixelPrototypeDistanceLoss
from .resized_cross_entropy import resized_cross_entropy

__all__ = [
    'AffinityLoss',
    'ClassGlobalConsistencyLoss',
    'ClassLocalConsistencyLoss',
    'InterClassCenterToCenterLoss',
    'InterClassCenterToPixelLoss',
    'IntraClassCenterToPixelLoss',
    'PixelPrototypeContrastLoss',
    'PixelPrototypeDistanceLoss',
    'class_centers',
    'resized_cross_entropy',
]
