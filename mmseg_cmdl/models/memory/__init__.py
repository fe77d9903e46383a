from .distribution_bank import BankUpdate, DistributionBank
from .feature_bank import FeatureBank, FeatureUpdate
from .gaussian_bank import GaussianBank
from .initial_memory import InitialMemory
from .memory_bank import MemoryBank
from .sinkhorn import sinkhorn

__all__ = [
    'BankUpdate',
    'DistributionBank',
    'FeatureBank',
    'FeatureUpdate',
    'GaussianBank',
    'InitialMemory',
    'MemoryBank',
    'sinkhorn',
]
