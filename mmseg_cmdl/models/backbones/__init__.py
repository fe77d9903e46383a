from .corner_aligned_hrnet import CornerAlignedHRNet
from .linear_stem_hrnet import LinearStemHRNet
from .timm_last_map import TIMMLastMap

__all__ = ['CornerAlignedHRNet', 'LinearStemHRNet', 'TIMMLastMap']
