from .distribution_bank import BankUpdate, DistributionBank
from .memory_bank import MemoryBank
from .sinkhorn import sinkhorn

__all__ = ['BankUpdate', 'DistributionBank', 'MemoryBank', 'sinkhorn']
