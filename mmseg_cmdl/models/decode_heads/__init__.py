from .caa_head import CAAHead
from .cp_head import CPHead
from .dataset_context_head import DatasetContextHead
from .dgcw_head import DGCWHead
from .mcibi_head import MCIBIHead
from .mcibi_plus_plus_head import MCIBIPlusPlusHead
from .mdrl_head import MDRLHead
from .memory_head import MemoryHead
from .proto_seg_head import ProtoSegHead

__all__ = [
    'CAAHead',
    'CPHead',
    'DGCWHead',
    'DatasetContextHead',
    'MCIBIHead',
    'MCIBIPlusPlusHead',
    'MDRLHead',
    'MemoryHead',
    'ProtoSegHead',
]
