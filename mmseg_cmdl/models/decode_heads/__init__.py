from .dataset_context_head import DatasetContextHead
from .mdrl_head import MDRLHead

__all__ = ['DatasetContextHead', 'MDRLHead']
