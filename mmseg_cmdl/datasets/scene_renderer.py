"""Draws the street scenes of SyntheticScenesDataset: numpy and OpenCV, no files."""

from typing import NamedTuple, Sequence, Tuple, Union

import cv2
import numpy as np

VOID = 255
# darker and lighter colour (RGB)
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
# Four looks of each class. Each colour serves at least three classes: it doesn't tell the class.
LOOKS = {
    'sky': ('blue plain', 'grey soft', 'orange plain', 'black speckle'),
    'ground': ('green soft', 'white soft', 'yellow stripes', 'orange speckle'),
    'road': ('grey speckle', 'black soft', 'red grid', 'yellow soft'),
    'building': ('red grid', 'blue grid', 'white stripes', 'grey grid'),
    'tree': ('green soft', 'orange soft', 'black stripes', 'white speckle'),
    'car': ('red plain', 'black plain', 'white stripes', 'blue grid'),
    'sign': ('red plain', 'yellow plain', 'blue stripes', 'green plain'),
    'person': ('red stripes', 'black plain', 'yellow plain', 'blue soft'),
}
CLASSES = tuple(LOOKS)


class Thing(NamedTuple):
    """Outline, x from -1 to 1 and y from 0, where it stands, to 1; its half width and its height
    as shares of the image's shorter side; how many there are in a scene, at least and at most.
    """

    outline: Sequence[Tuple[float, float]]
    half_width: float
    height: float
    least: int
    most: int


THINGS = {
    'building': Thing([(-1, 0), (-1, 0.8), (0, 1), (1, 0.8), (1, 0)], 0.15, 0.3, 1, 4),
    'tree': Thing([(-0.2, 0), (-1, 0.4), (-0.7, 1), (0.7, 1), (1, 0.4), (0.2, 0)], 0.13, 0.4, 1, 3),
    'car': Thing([(-1, 0), (-1, 0.5), (-0.5, 1), (0.4, 1), (1, 0.5), (1, 0)], 0.18, 0.14, 1, 3),
    'sign': Thing([(-0.1, 0), (-0.1, 0.5), (-1, 0.75), (0, 1), (1, 0.75), (0.1, 0.5), (0.1, 0)],
                  0.1, 0.36, 0, 3),
    'person': Thing([(-0.8, 0), (-1, 0.8), (-0.4, 1), (0.4, 1), (1, 0.8), (0.8, 0)],
                    0.06, 0.28, 1, 4),
}  # fmt: skip


class Scene(NamedTuple):
    """Image, uint8 [H, W, 3] in RGB, and class ids, uint8 [H, W], 255 on lines between classes."""

    image: np.ndarray
    label: np.ndarray


def texture(
    name: str, height: int, width: int, period: float, rng: np.random.Generator
) -> np.ndarray:
    """How far each pixel is from the darker to the lighter colour, float32 [H, W] in 0 to 1.

    `period` is that of stripes and grids, in pixels.
    """
    grain = rng.random((height, width), dtype=np.float32)
    if name == 'soft':
        return np.clip(0.5 + 3 * (cv2.GaussianBlur(grain, (0, 0), 2) - 0.5), 0, 1)
    if name == 'speckle':
        return 0.25 * grain + 0.75 * (grain > 0.8)
    y, x = np.indices((height, width)) / period + rng.random((2, 1, 1))
    pattern = {
        'plain': np.zeros_like(x),
        'stripes': (y + rng.uniform(-0.8, 0.8) * x) % 1 < 0.5,
        'grid': (y % 1 < 0.3) | (x % 1 < 0.3),
    }[name]
    return (0.25 * grain + 0.75 * pattern).astype(np.float32)


def render_scene(rng: np.random.Generator, size: Tuple[int, int] = (128, 128)) -> Scene:
    """Sky, ground, a road, buildings at the horizon, then the other things by their distance.

    Args:
        rng (np.random.Generator): Decides everything.
        size (tuple[int, int]): Height and width in pixels, each at least 32.

    Returns:
        Scene: Image and label.
    """
    height, width = size
    image = np.empty((height, width, 3), np.float32)
    label = np.empty((height, width), np.uint8)
    period = min(size) / 25

    def paint(name: str, points: Union[Sequence, np.ndarray]) -> None:
        color, kind = LOOKS[name][rng.integers(4)].split()
        dark, light = np.array(COLORS[color], np.float32) + rng.normal(0, 10, (2, 3))
        corners = np.round(points).astype(np.int32)
        left, top = np.maximum(corners.min(0), 0)
        right, bottom = np.minimum(corners.max(0) + 1, (width, height))
        if right <= left or bottom <= top:
            return
        box = np.s_[top:bottom, left:right]
        mask = np.zeros((bottom - top, right - left), np.uint8)
        cv2.fillPoly(mask, [corners], 1, offset=(-int(left), -int(top)))
        inside = mask.view(bool)
        mix = texture(kind, bottom - top, right - left, period, rng)[inside][:, None]
        image[box][inside] = dark + mix * (light - dark)
        label[box][inside] = CLASSES.index(name)

    horizon = int(rng.uniform(0.35, 0.6) * height)
    right, bottom = width - 1, height - 1
    paint('sky', [(0, 0), (right, 0), (right, bottom), (0, bottom)])
    paint('ground', [(0, horizon), (right, horizon), (right, bottom), (0, bottom)])
    far, near = rng.uniform(0.2, 0.8, 2) * width
    wide = rng.uniform(0.2, 0.4) * width
    paint('road', [(far, horizon), (far + wide / 5, horizon), (near + wide, bottom),
                   (near - wide, bottom)])  # fmt: skip
    things = [
        (0 if name == 'building' else rng.uniform(0.05, 1), name)
        for name, thing in THINGS.items()
        for _ in range(rng.integers(thing.least, thing.most + 1))
    ]
    for depth, name in sorted(things):
        outline, half_width, high, _, _ = THINGS[name]
        scale = (0.6 + 0.5 * depth) * min(size) * rng.uniform(0.8, 1.2)
        foot = rng.uniform(0, width), horizon + depth * (0.98 * height - horizon)
        paint(name, foot + np.array(outline) * (half_width * scale, -high * scale))

    # exposure and colour of the light, then the sensor's noise
    light = rng.uniform(0.55, 1.15) * rng.uniform(0.88, 1.12, 3)
    seen = image * light + rng.uniform(-12, 12, (height, width, 1))
    return Scene(np.clip(seen, 0, 255).astype(np.uint8), without_edges(label))


def without_edges(label: np.ndarray) -> np.ndarray:
    """Class ids [H, W] with 255 where the pixel to the right or below is of another class."""
    edge = np.zeros(label.shape, bool)
    edge[:, :-1] |= label[:, :-1] != label[:, 1:]
    edge[:-1] |= label[:-1] != label[1:]
    return np.where(edge, np.uint8(VOID), label)
