from .camvid import CamVidDataset
from .cihp import CIHPDataset
from .synthetic_scenes import LoadSceneAppearance, SyntheticScenesDataset

__all__ = ['CIHPDataset', 'CamVidDataset', 'LoadSceneAppearance', 'SyntheticScenesDataset']
