from .cp_head import CPHead
from .dataset_context_head import DatasetContextHead
from .dgcw_head import DGCWHead
from .mcibi_head import MCIBIHead
from .mdrl_head import MDRLHead

__all__ = ['CPHead', 'DGCWHead', 'DatasetContextHead', 'MCIBIHead', 'MDRLHead']
