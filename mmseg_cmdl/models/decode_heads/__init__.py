from .dataset_context_head import DatasetContextHead
from .mcibi_head import MCIBIHead
from .mdrl_head import MDRLHead

__all__ = ['DatasetContextHead', 'MCIBIHead', 'MDRLHead']
