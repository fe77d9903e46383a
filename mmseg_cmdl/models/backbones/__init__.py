from .corner_aligned_hrnet import CornerAlignedHRNet
from .linear_stem_hrnet import LinearStemHRNet

__all__ = ['CornerAlignedHRNet', 'LinearStemHRNet']
