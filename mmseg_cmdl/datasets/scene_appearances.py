"""How the classes of SyntheticScenesDataset look: colours and textures."""

from typing import List, NamedTuple

import cv2
import numpy as np

# name: darker and lighter colour (RGB).
COLORS = {
    'white': ((205, 205, 205), (245, 245, 245)),
    'grey': ((105, 105, 110), (165, 165, 170)),
    'black': ((12, 12, 20), (62, 62, 75)),
    'red': ((140, 40, 35), (205, 75, 60)),
    'orange': ((190, 105, 40), (240, 175, 90)),
    'yellow': ((185, 155, 50), (235, 215, 110)),
    'green': ((35, 85, 35), (100, 155, 75)),
    'blue': ((45, 85, 160), (135, 175, 225)),
}


class Appearance(NamedTuple):
    """One look of a class: a key of ``COLORS``, a texture, and a shape where it has several."""

    color: str
    texture: str
    shape: str = ''

    @property
    def name(self) -> str:
        return ' '.join(part for part in self if part)


# Each colour serves at least three classes and most textures two: neither tells the class.
APPEARANCES = {
    'sky': (
        Appearance('blue', 'gradient'),
        Appearance('grey', 'clouds'),
        Appearance('orange', 'gradient'),
        Appearance('black', 'speckle'),
    ),
    'ground': (
        Appearance('green', 'leaves'),
        Appearance('white', 'clouds'),
        Appearance('yellow', 'stripes'),
        Appearance('orange', 'speckle'),
    ),
    'road': (
        Appearance('grey', 'speckle'),
        Appearance('black', 'clouds'),
        Appearance('red', 'bricks'),
        Appearance('yellow', 'leaves'),
    ),
    'building': (
        Appearance('red', 'bricks'),
        Appearance('blue', 'grid'),
        Appearance('white', 'windows'),
        Appearance('grey', 'windows'),
    ),
    'tree': (
        Appearance('green', 'leaves', 'round'),
        Appearance('orange', 'leaves', 'round'),
        Appearance('black', 'stripes', 'conifer'),
        Appearance('white', 'speckle', 'round'),
    ),
    'car': (
        Appearance('red', 'plain', 'saloon'),
        Appearance('black', 'plain', 'saloon'),
        Appearance('white', 'stripes', 'van'),
        Appearance('blue', 'grid', 'van'),
    ),
    'sign': (
        Appearance('red', 'plain', 'disc'),
        Appearance('yellow', 'plain', 'diamond'),
        Appearance('blue', 'stripes', 'square'),
        Appearance('green', 'plain', 'square'),
    ),
    'person': (
        Appearance('red', 'stripes'),
        Appearance('black', 'plain'),
        Appearance('yellow', 'plain'),
        Appearance('blue', 'leaves'),
    ),
}
CLASSES = tuple(APPEARANCES)
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


def _noise_tiles(size: int = 256) -> List[np.ndarray]:
    """White noise and two smoothed copies, each of mean 0.5, wrapping around."""
    white = np.random.default_rng(0).random((size, size), dtype=np.float32)
    tiles = [white]
    for sigma in (1.5, 8):
        pad = size // 4
        soft = cv2.GaussianBlur(np.pad(white, pad, mode='wrap'), (0, 0), sigma)[pad:-pad, pad:-pad]
        tiles.append(np.clip(0.5 + (soft - soft.mean()) / soft.std() * 0.25, 0, 1))
    return [tile.astype(np.float32) for tile in tiles]


WHITE_NOISE, _FINE_NOISE, _SOFT_NOISE = _noise_tiles()


def crop_noise(tile: np.ndarray, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    y, x = rng.integers(0, tile.shape[0], 2)
    rows = (np.arange(y, y + height) % tile.shape[0])[:, None]
    return tile[rows, np.arange(x, x + width) % tile.shape[1]]


def texture_mix(
    name: str, height: int, width: int, unit: float, rng: np.random.Generator
) -> np.ndarray:
    """Mix of the two colours of an appearance, float32 ``[height, width]`` in 0 to 1.

    ``unit`` is the size in pixels of a hundredth or so of the image, so that
    a scene looks alike at any resolution.
    """
    if name == 'clouds':
        return crop_noise(_SOFT_NOISE, height, width, rng)
    if name == 'leaves':
        return crop_noise(_FINE_NOISE, height, width, rng)
    grain = 0.25 * crop_noise(WHITE_NOISE, height, width, rng)
    if name == 'plain':
        return 0.3 + grain
    if name == 'speckle':
        return grain + (grain > 0.225)
    y = np.arange(height, dtype=np.float32)[:, None]
    x = np.arange(width, dtype=np.float32)[None]
    if name == 'gradient':
        return grain / 2 + 0.85 * y / max(height - 1, 1)
    shift_x, shift_y = rng.random(2)
    period = unit * rng.uniform(4, 6)
    v, u = y / period + shift_y, x / period + shift_x
    if name == 'stripes':
        slope = rng.choice([-1, 1]) * rng.uniform(0.3, 0.8)
        return grain + 0.75 * ((v + slope * u) % 1 < 0.5)
    if name == 'bricks':
        course = np.floor(2 * v)
        mortar = (2 * v % 1 < 0.3) | ((u + 0.5 * (course % 2)) % 1 < 0.15)
        return grain + 0.75 * mortar
    if name == 'grid':
        return grain + 0.75 * ((v % 1 < 0.25) | (u % 1 < 0.25))
    if name == 'windows':
        return 0.75 + grain - 0.75 * ((v / 1.5 % 1 > 0.45) & (u / 1.5 % 1 > 0.5))
    raise KeyError(name)
