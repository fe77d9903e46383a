from .linear_stem_hrnet import LinearStemHRNet

__all__ = ['LinearStemHRNet']
