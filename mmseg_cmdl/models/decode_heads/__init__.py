from .dataset_context_head import DatasetContextHead
from .dgcw_head import DGCWHead
from .mcibi_head import MCIBIHead
from .mdrl_head import MDRLHead

__all__ = ['DGCWHead', 'DatasetContextHead', 'MCIBIHead', 'MDRLHead']
