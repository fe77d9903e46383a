from .camvid import CamVidDataset
from .cihp import CIHPDataset
from .earth_climate import EarthClimateDataset
from .synthetic_scenes import LoadSceneAppearance, SyntheticScenesDataset

__all__ = [
    'CIHPDataset',
    'CamVidDataset',
    'EarthClimateDataset',
    'LoadSceneAppearance',
    'SyntheticScenesDataset',
]
