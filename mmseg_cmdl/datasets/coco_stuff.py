"""COCO-Stuff with all 182 categories, as MCIBI has it."""

from typing import Dict, Mapping, Optional, Sequence

from mmseg.datasets import COCOStuffDataset

from ..registry import DATASETS

# Categories that COCO-Stuff names and no image is labelled with, and their places among the 182.
_UNLABELLED = {
    11: 'street sign',
    25: 'hat',
    28: 'shoe',
    29: 'eye glasses',
    44: 'plate',
    65: 'mirror',
    67: 'window',
    68: 'desk',
    70: 'door',
    82: 'blender',
    90: 'hair brush',
}


def _with_unlabelled(values: Sequence, fill: Mapping[int, object]) -> tuple:
    """`values` of the 171 labelled categories among all 182, `fill` at the places of the others."""
    rest = iter(values)
    total = len(values) + len(fill)
    return tuple(fill[index] if index in fill else next(rest) for index in range(total))


@DATASETS.register_module()
class COCOStuff182Dataset(COCOStuffDataset):
    """COCO-Stuff with 182 classes: the 171 of MMSegmentation and 11 that no pixel is labelled with.

    The released MCIBI predicts 182 classes on COCO-Stuff 10k. The files are those of
    :class:`mmseg.datasets.COCOStuffDataset`, whose converters number the 171 classes one after
    the other; they are renumbered when loaded.

    Args:
        **kwargs: Options of :class:`mmseg.datasets.COCOStuffDataset`.
    """

    METAINFO = dict(
        classes=_with_unlabelled(COCOStuffDataset.METAINFO['classes'], _UNLABELLED),
        palette=list(
            _with_unlabelled(
                COCOStuffDataset.METAINFO['palette'], {index: [0, 0, 0] for index in _UNLABELLED}
            )
        ),
    )

    @classmethod
    def get_label_map(cls, new_classes: Optional[Sequence[str]] = None) -> Dict[int, int]:
        """Ids in the files (0..170) to ids among the 182, or among a subset of them.

        Args:
            new_classes (Sequence[str], optional): Names of the subset. Defaults to all.

        Raises:
            ValueError: One of the names is no class of COCO-Stuff.
        """
        chosen = cls.METAINFO['classes'] if new_classes is None else list(new_classes)
        unknown = [name for name in chosen if name not in cls.METAINFO['classes']]
        if unknown:
            raise ValueError(f'COCOStuff182Dataset: {unknown} are not classes of COCO-Stuff')
        return {
            index: chosen.index(name) if name in chosen else 255
            for index, name in enumerate(COCOStuffDataset.METAINFO['classes'])
        }
