"""CIHP: several people in an image, labelled with the parts of LIP."""

from mmseg.datasets import LIPDataset

from ..registry import DATASETS


@DATASETS.register_module()
class CIHPDataset(LIPDataset):
    """Crowd Instance-level Human Parsing, 20 categories (Gong et al., ECCV 2018).

    The ids are those of :class:`mmseg.datasets.LIPDataset`, so a model trained on LIP can be
    tested here, as in MCIBI, table 4. The paper takes the categories for the same; in fact id 10
    is 'Jumpsuits' there and 'Torso-skin' here.

    ``tools/dataset_converters/lip.py`` writes the layout, the same as LIP's:
    ``images/{train,val}`` and ``annotations/{train,val}``, with 28280 and 5000 images.

    Args:
        **kwargs: Options of :class:`mmseg.datasets.BaseSegDataset`.
    """

    METAINFO = dict(
        classes=tuple(
            'Torso-skin' if name == 'Jumpsuits' else name for name in LIPDataset.METAINFO['classes']
        ),
        palette=LIPDataset.METAINFO['palette'],
    )
