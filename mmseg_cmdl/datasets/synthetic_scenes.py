"""Street scenes made on the fly, for demos and tests: no files, no download."""

import re
from functools import lru_cache
from typing import Any, Tuple

import cv2
import numpy as np
from mmengine import fileio
from mmengine.fileio.backends import BaseStorageBackend
from mmseg.datasets import BaseSegDataset

from ..registry import DATASETS
from .scene_renderer import CLASSES, Scene, render_scene

SCHEME = 'synthetic-scenes'
SPLITS = ('train', 'val', 'test')
_PATH = re.compile(
    rf'{SCHEME}://(?P<split>{"|".join(SPLITS)})/(?P<height>\d+)x(?P<width>\d+)'
    r'-seed(?P<seed>\d+)/(?P<kind>image|label)/(?P<index>\d+)\.png'
)
# told apart by colour-blind readers too, and from the colours of right and wrong pixels
PALETTE = [
    [110, 185, 235],
    [140, 230, 105],
    [110, 105, 165],
    [185, 135, 105],
    [10, 135, 125],
    [50, 80, 180],
    [245, 215, 50],
    [160, 30, 75],
]


@lru_cache(maxsize=4)  # an image and its label are asked for one after the other
def _scene(split: str, height: int, width: int, seed: int, index: int) -> Scene:
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    return render_scene(rng, (height, width))


def _read(path: str) -> Tuple[Scene, str]:
    """Scene of a path, and which of its planes the path means."""
    match = _PATH.fullmatch(str(path))
    if match is None:
        raise FileNotFoundError(
            f'{path} is no path of a synthetic scene; one looks like '
            f'{SCHEME}://val/128x128-seed0/image/000012.png'
        )
    numbers = [int(match[key]) for key in ('height', 'width', 'seed', 'index')]
    return _scene(match['split'], *numbers), match['kind']


class SyntheticScenesBackend(BaseStorageBackend):
    """Serves ``synthetic-scenes://`` paths to ``mmengine.fileio`` as PNG files.

    So whatever reads an image by its path (LoadImageFromFile, LoadAnnotations,
    SegVisualizationHook, MMSegInferencer) works on scenes that are nowhere on
    disk. A path says all there is to know of its scene::

        synthetic-scenes://val/128x128-seed0/image/000012.png
    """

    def get(self, filepath: str) -> bytes:
        """Render.

        Args:
            filepath (str): As above; ``image`` or ``label``.

        Returns:
            bytes: A PNG, in colour or with 8-bit ids.

        Raises:
            FileNotFoundError: The path is none of a scene.
        """
        scene, kind = _read(filepath)
        plane = getattr(scene, kind)
        if plane.ndim == 3:
            plane = plane[..., ::-1]
        # decoded at once by the next line of the pipeline: speed, not size
        return cv2.imencode('.png', plane, [cv2.IMWRITE_PNG_COMPRESSION, 0])[1].tobytes()

    def get_text(self, filepath: str) -> str:
        raise NotImplementedError(f'{filepath} is an image')


fileio.register_backend(SCHEME, SyntheticScenesBackend, force=True, prefixes=SCHEME)


@DATASETS.register_module()
class SyntheticScenesDataset(BaseSegDataset):
    """Eight classes of a street that each come in four clearly different looks.

    A building is of red, blue or grey squares, or of white stripes; a car red, black, white and
    striped, or blue. Each colour is shared by at least three classes, so it doesn't tell the class,
    and the mean feature of a class lies far from its looks. Scenes differ in layout, light and
    noise. They are rendered when read and depend on ``seed``, ``split`` and the index alone, in any
    process. 128x128 pixels take a few milliseconds. The line between classes is ignored (255).

    Pipelines are the usual ones: LoadImageFromFile, LoadAnnotations, ...; paths
    are served by :class:`SyntheticScenesBackend`. The shipped ``*_synthetic-128x128`` configs
    train on it, so that a first training needs nothing else on the disk.

    Args:
        length (int): Number of images. Defaults to 256.
        size (tuple[int, int]): Height and width in pixels, at least 32 each.
            Defaults to (128, 128).
        split (str): 'train', 'val' or 'test'; no scene is in two. Defaults to 'train'.
        seed (int): Another seed gives other scenes. Defaults to 0.
        **kwargs: Options of :class:`mmseg.datasets.BaseSegDataset`, its paths aside.

    Raises:
        ValueError: An argument is out of range.
    """

    METAINFO = dict(classes=CLASSES, palette=PALETTE)

    def __init__(
        self,
        length: int = 256,
        size: tuple = (128, 128),
        split: str = 'train',
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        height, width = (size, size) if isinstance(size, int) else size
        if length < 1:
            raise ValueError(f'SyntheticScenesDataset: length must be at least 1, got {length}')
        if min(height, width) < 32:
            raise ValueError(
                f'SyntheticScenesDataset: size must be at least 32 each way, got {size}'
            )
        if split not in SPLITS:
            raise ValueError(
                f'SyntheticScenesDataset: split must be one of {SPLITS}, got {split!r}'
            )
        if seed < 0:
            raise ValueError(f'SyntheticScenesDataset: seed must not be negative, got {seed}')
        for key in ('ann_file', 'data_root', 'data_prefix'):
            if kwargs.get(key):
                raise ValueError(
                    f'SyntheticScenesDataset reads no files; remove {key}={kwargs[key]!r}'
                )
        self.length = length
        self.folder = f'{SCHEME}://{split}/{height}x{width}-seed{seed}'
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict]:
        """Paths of the scenes; nothing is rendered yet.

        Returns:
            list[dict]: As :class:`mmseg.datasets.BaseSegDataset` has it.
        """
        return [
            dict(
                img_path=f'{self.folder}/image/{index:06d}.png',
                seg_map_path=f'{self.folder}/label/{index:06d}.png',
                label_map=self.label_map,
                reduce_zero_label=self.reduce_zero_label,
                seg_fields=[],
            )
            for index in range(self.length)
        ]

    def render(self, index: int) -> Scene:
        """One scene before any pipeline, for figures.

        Args:
            index (int): 0 to ``len(self) - 1``.

        Returns:
            Scene: RGB ``image`` and ``label``.
        """
        scene, _ = _read(self.get_data_info(index)['img_path'])
        return Scene(*(plane.copy() for plane in scene))
