from .dataset_context_head import DatasetContextHead
from .dgcw_head import DGCWHead
from .mdrl_head import MDRLHead

__all__ = ['DGCWHead', 'DatasetContextHead', 'MDRLHead']
