from .caa_head import CAAHead
from .cp_head import CPHead
from .dataset_context_head import DatasetContextHead
from .dgcw_head import DGCWHead
from .mcibi_head import MCIBIHead
from .mdrl_head import MDRLHead

__all__ = ['CAAHead', 'CPHead', 'DGCWHead', 'DatasetContextHead', 'MCIBIHead', 'MDRLHead']
