from .camvid import CamVidDataset
from .cihp import CIHPDataset
from .coco_stuff import COCOStuff182Dataset
from .earth_climate import EarthClimateDataset
from .synthetic_scenes import SyntheticScenesDataset

__all__ = [
    'CIHPDataset',
    'COCOStuff182Dataset',
    'CamVidDataset',
    'EarthClimateDataset',
    'SyntheticScenesDataset',
]
