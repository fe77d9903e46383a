"""CamVid, 11 classes: the original 960x720 frames and the usual 480x360 copy."""

import os.path as osp
from collections import Counter
from typing import Any, List, Optional, Sequence, Tuple, Union

import numpy as np
from mmengine import fileio
from mmseg.datasets import BaseSegDataset
from PIL import Image

from ..registry import DATASETS

VOID = 11
IGNORED = 255
SUFFIXES = ('.png', '.jpg', '.jpeg')
CONVERTER = 'tools/dataset_converters/camvid.py'


@DATASETS.register_module()
class CamVidDataset(BaseSegDataset):
    """The Cambridge-driving Labeled Video Database with 11 classes.

    Both layouts look the same on disk: ``images/{train,val,test}`` and
    ``annotations/{train,val,test}`` with 367, 101 and 233 frames.
    ``tools/dataset_converters/camvid.py`` writes them from the original
    download (960x720, 32 colours) or from the 480x360 copy of the SegNet
    tutorial. Classes and ids are those of that copy: 0 to 10, and 11 for void.
    Void (11, or 255 as the converter writes it) is never trained on nor
    scored: ``label_map`` turns it into 255.

    Annotations are looked at once, when the dataset is built: 0.5 s for 367
    frames of 480x360. A 3-channel map, an id that means nothing or a size that
    isn't the image's would otherwise be found late (an indexing error in the
    middle of an epoch) or never (IoUMetric leaves unknown ids out silently).

    Args:
        img_suffix (str, optional): Suffix of the images. ``None`` takes what
            the image folder holds: the copies of CamVid that go around have
            PNG or JPEG images. Defaults to ``None``.
        seg_map_suffix (str): Suffix of the annotations. Defaults to '.png'.
        check_annotations (bool): Whether to look at every annotation when the
            dataset is built. Defaults to ``True``.
        reduce_zero_label (bool): Must stay ``False``: id 0 is the sky.
        **kwargs: Options of :class:`mmseg.datasets.BaseSegDataset`. Fewer ``classes``
            in ``metainfo`` are fine: the others are ignored like void.

    Raises:
        FileNotFoundError: A folder, an image or an annotation is missing, or
            the split is empty.
        ValueError: An annotation can't be used, or ``img_suffix`` is needed.
    """

    METAINFO = dict(
        classes=(
            'Sky',
            'Building',
            'Pole',
            'Road',
            'Pavement',
            'Tree',
            'SignSymbol',
            'Fence',
            'Car',
            'Pedestrian',
            'Bicyclist',
        ),
        palette=[
            [128, 128, 128],
            [128, 0, 0],
            [192, 192, 128],
            [128, 64, 128],
            [0, 0, 192],
            [128, 128, 0],
            [192, 128, 128],
            [64, 64, 128],
            [64, 0, 128],
            [64, 64, 0],
            [0, 128, 192],
        ],
    )

    img_suffix: Optional[str]

    def __init__(
        self,
        img_suffix: Optional[str] = None,
        seg_map_suffix: str = '.png',
        check_annotations: bool = True,
        reduce_zero_label: bool = False,
        **kwargs: Any,
    ) -> None:
        if reduce_zero_label:
            raise ValueError(
                'CamVidDataset: reduce_zero_label=True would drop class 0, the sky; '
                'leave it False, void is ignored already'
            )
        self.check_annotations = check_annotations
        super().__init__(
            img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, reduce_zero_label=False, **kwargs
        )

    @classmethod
    def get_label_map(cls, new_classes: Optional[Sequence[str]] = None) -> dict:
        """Ids on disk to ids for training, void to 255.

        Args:
            new_classes (Sequence[str], optional): Classes to train on.

        Returns:
            dict: Only the ids that change.
        """
        label_map = super().get_label_map(new_classes) or {}
        label_map[VOID] = IGNORED
        return label_map

    def load_data_list(self) -> list[dict]:
        """Image and annotation paths of the split, checked.

        Returns:
            list[dict]: As :class:`mmseg.datasets.BaseSegDataset` has it.
        """
        img_dir = self.data_prefix.get('img_path')
        self._require_folder(img_dir, 'img_path')
        if self.img_suffix is None:
            self.img_suffix = self._find_suffix(img_dir)
        data_list = super().load_data_list()
        if not data_list:
            raise FileNotFoundError(
                f'CamVidDataset: no {self.img_suffix} image in {img_dir}'
                + (f' for {self.ann_file}' if self.ann_file else '')
                + f'; check data_root, data_prefix and img_suffix, or run {CONVERTER}'
            )
        if self.ann_file:
            self._require_files(data_list, 'img_path', img_dir, self.img_suffix)

        seg_map_dir = self.data_prefix.get('seg_map_path')
        if seg_map_dir is not None:
            self._require_folder(seg_map_dir, 'seg_map_path')
            self._require_files(data_list, 'seg_map_path', seg_map_dir, self.seg_map_suffix)
            if self.check_annotations:
                for data_info in data_list:
                    self._check_annotation(data_info)
        return data_list

    def _require_folder(self, folder: str, key: str) -> None:
        if not folder or not fileio.isdir(folder, backend_args=self.backend_args):
            raise FileNotFoundError(
                f"CamVidDataset: data_prefix['{key}'] is {folder!r}, which is not a folder; set "
                f'data_root to where CamVid lies, or run {CONVERTER}'
            )

    def _names(self, folder: str, suffix: Union[str, Tuple[str, ...]]) -> List[str]:
        return fileio.list_dir_or_file(
            folder, list_dir=False, suffix=suffix, recursive=True, backend_args=self.backend_args
        )

    def _find_suffix(self, img_dir: str) -> str:
        found = Counter(osp.splitext(name)[1] for name in self._names(img_dir, SUFFIXES))
        if not found:
            raise FileNotFoundError(
                f'CamVidDataset: no image ({", ".join(SUFFIXES)}) in {img_dir}; check data_root '
                f'and data_prefix, or run {CONVERTER}'
            )
        if len(found) > 1:
            raise ValueError(
                f'CamVidDataset: {img_dir} holds images of several kinds, '
                f'{dict(found)}; pass img_suffix'
            )
        return next(iter(found))

    def _require_files(self, data_list: List[dict], key: str, folder: str, suffix: str) -> None:
        present = {osp.join(folder, name) for name in self._names(folder, suffix)}
        missing = [info[key] for info in data_list if info[key] not in present]
        if missing:
            kind = 'image' if key == 'img_path' else 'annotation'
            raise FileNotFoundError(
                f'CamVidDataset: {len(missing)} of {len(data_list)} frames have no {kind}, the '
                f'first is {missing[0]}; restore the files, or run {CONVERTER} again'
            )

    def _check_annotation(self, data_info: dict) -> None:
        path = data_info['seg_map_path']

        def fail(what: str, remedy: str) -> None:
            raise ValueError(f'CamVidDataset: {path} {what}; {remedy}')

        mode, size, ids = self._read(path, decode=True)
        if mode not in ('L', 'P', 'I;16', 'I'):
            fail(
                f'is a {mode} image, not one class id a pixel',
                f'the original colour labels must go through {CONVERTER} first',
            )
        image_size = self._read(data_info['img_path'])[1]
        if image_size != size:
            fail(
                'is {}x{}, its image {} {}x{}'.format(*size, data_info['img_path'], *image_size),
                'use annotations of the same copy of CamVid as the images',
            )
        wrong = (ids > VOID) & (ids != IGNORED)
        if wrong.any():
            values, counts = np.unique(ids[wrong], return_counts=True)
            fail(
                f'holds the ids {values[:8].tolist()} ({counts.sum()} pixels), and only 0 to 10, '
                f'{VOID} and {IGNORED} (void) are CamVid ids',
                f'write the annotations anew with {CONVERTER}',
            )

    def _read(self, path: str, decode: bool = False) -> Any:
        with fileio.get_local_path(path, backend_args=self.backend_args) as local_path:
            try:
                # only the header is read until the pixels are asked for
                with Image.open(local_path) as image:
                    return image.mode, image.size, np.asarray(image) if decode else None
            except (Image.UnidentifiedImageError, OSError, SyntaxError) as error:
                raise ValueError(
                    f'CamVidDataset: {path} is no image that can be read ({error}); '
                    'fetch or convert it again'
                ) from error
