from .camvid import CamVidDataset
from .synthetic_scenes import LoadSceneAppearance, SyntheticScenesDataset

__all__ = ['CamVidDataset', 'LoadSceneAppearance', 'SyntheticScenesDataset']
