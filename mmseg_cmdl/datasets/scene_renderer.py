"""Draws the street scenes of SyntheticScenesDataset: numpy and OpenCV, no files.

A scene is painted from back to front: sky, ground, buildings, road, then
trees, signs, cars and people by their distance. Each thing is drawn in one of
the appearances of its class.

It stays in the package although its own tests and the quick-start are what mostly train on it: the
shipped `*_synthetic-128x128` configs need nothing else on the disk.
"""

from typing import NamedTuple, Optional, Sequence, Tuple

import cv2
import numpy as np

from .scene_appearances import APPEARANCES, CLASSES, COLORS, WHITE_NOISE, crop_noise, texture_mix

VOID = 255
_ID = {name: index for index, name in enumerate(CLASSES)}


class Scene(NamedTuple):
    """A rendered scene.

    ``image`` is uint8 ``[H, W, 3]`` in RGB; ``label`` uint8 ``[H, W]`` holds class ids;
    ``appearance`` uint8 ``[H, W]`` the index of each pixel's look among those of its class.
    Both maps are 255 in the ignored border.
    """

    image: np.ndarray
    label: np.ndarray
    appearance: np.ndarray


class _Canvas:
    """Image and maps under construction; polygons are lists of ``[n, 2]`` x, y points."""

    def __init__(self, height: int, width: int, rng: np.random.Generator) -> None:
        self.height, self.width, self.rng = height, width, rng
        self.unit = min(height, width) / 100
        self.image = np.empty((height, width, 3), np.float32)
        self.label = np.empty((height, width), np.uint8)
        self.appearance = np.empty((height, width), np.uint8)

    def _mask(self, polygons: Sequence) -> tuple:
        """Region of the canvas that holds the polygons, and their mask in it."""
        polygons = [np.round(polygon).astype(np.int32) for polygon in polygons]
        points = np.concatenate(polygons)
        left, top = np.maximum(points.min(0), 0)
        right, bottom = np.minimum(points.max(0) + 1, (self.width, self.height))
        if right <= left or bottom <= top:
            return None, None
        mask = np.zeros((bottom - top, right - left), np.uint8)
        for polygon in polygons:
            cv2.fillPoly(mask, [polygon], 1, offset=(-int(left), -int(top)))
        return np.s_[top:bottom, left:right], mask.view(bool)

    def paint(self, name: str, look: int, polygons: Sequence) -> None:
        """Draw a thing of class ``name`` in its ``look``-th appearance."""
        region, mask = self._mask(polygons)
        if region is None:
            return
        appearance = APPEARANCES[name][look]
        height, width = mask.shape
        mix = texture_mix(appearance.texture, height, width, self.unit, self.rng)[..., None]
        jitter = self.rng.normal(0, 10, (2, 3)).astype(np.float32)
        dark, light = np.array(COLORS[appearance.color], np.float32) + jitter
        np.copyto(self.image[region], dark + mix * (light - dark), where=mask[..., None])
        self.label[region][mask] = _ID[name]
        self.appearance[region][mask] = look

    def tint(self, polygons: Sequence, color: Sequence[int]) -> None:
        """Draw a detail of what is there already: the maps stay."""
        region, mask = self._mask(polygons)
        if region is not None:
            self.image[region][mask] = color


def _box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def _trapezoid(
    top: float, bottom: float, above: Tuple[float, float], below: Tuple[float, float]
) -> np.ndarray:
    """Between two heights; `above` and `below` are middle and half width of its level edges."""
    (x0, half0), (x1, half1) = above, below
    return np.array(
        [(x0 - half0, top), (x0 + half0, top), (x1 + half1, bottom), (x1 - half1, bottom)]
    )


def _disc(
    x: float, y: float, radius_x: float, radius_y: Optional[float] = None, corners: int = 16
) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([x + radius_x * np.cos(angle), y + (radius_y or radius_x) * np.sin(angle)], 1)


def _draw_road(canvas: _Canvas, look: int, horizon: float) -> None:
    rng, height, width = canvas.rng, canvas.height, canvas.width
    if rng.random() < 0.5:  # along the view
        top, bottom = rng.uniform(0.2, 0.8, 2) * width
        near, far = rng.uniform(0.25, 0.5) * width, rng.uniform(0.03, 0.12) * width
        road = _trapezoid(horizon, height, (top, far), (bottom, near))
        canvas.paint('road', look, [road])
        dashes = [(start, min(start + 0.12, 1)) for start in (0.1, 0.35, 0.65)]
        lines = []
        for start, end in dashes:
            near_y, far_y = (horizon + (height - horizon) * t for t in (end, start))
            near_x, far_x = (top + (bottom - top) * t for t in (end, start))
            wide = 0.03 * near
            lines.append(_trapezoid(far_y, near_y, (far_x, wide * start), (near_x, wide * end)))
    else:  # across it
        top = horizon + rng.uniform(0.1, 0.45) * (height - horizon)
        bottom = top + rng.uniform(0.3, 0.6) * (height - horizon)
        canvas.paint('road', look, [_box(0, top, width, bottom)])
        middle, length = (top + bottom) / 2, 12 * canvas.unit
        lines = [
            _box(x, middle, x + length / 2, middle + canvas.unit)
            for x in np.arange(rng.uniform(-length, 0), width, length)
        ]
    if rng.random() < 0.6:
        canvas.tint(lines, (225, 225, 215))


def _draw_building(canvas: _Canvas, look: int, horizon: float) -> None:
    rng, unit = canvas.rng, canvas.unit
    left = rng.uniform(-0.1, 0.9) * canvas.width
    wide, high = rng.uniform(16, 42) * unit, rng.uniform(12, 42) * unit
    shape = [_box(left, horizon - high, left + wide, horizon + unit)]
    if rng.random() < 0.4:
        roof = [(left, horizon - high), (left + wide, horizon - high)]
        shape.append(np.array([*roof, (left + wide / 2, horizon - high - wide / 3)]))
    canvas.paint('building', look, shape)


def _draw_tree(canvas: _Canvas, look: int, x: float, y: float, scale: float) -> None:
    rng = canvas.rng
    high, wide = rng.uniform(32, 50) * scale, rng.uniform(11, 16) * scale
    shape = APPEARANCES['tree'][look].shape
    if shape == 'conifer':
        crown = [np.array([(x - wide, y - high / 6), (x + wide, y - high / 6), (x, y - high)])]
    else:
        crown = [
            _disc(x, y - high * 0.65, wide, high * 0.38),
            _disc(x - wide * 0.5, y - high * 0.5, wide * 0.7, high * 0.25),
        ]
    trunk = [_box(x - 1.5 * scale, y - high / 3, x + 1.5 * scale, y)]
    canvas.paint('tree', look, trunk + crown)
    canvas.tint([_box(x - 1.5 * scale, y - high / 5, x + 1.5 * scale, y)], (85, 60, 45))


def _draw_car(canvas: _Canvas, look: int, x: float, y: float, scale: float) -> None:
    half = canvas.rng.uniform(15, 20) * scale
    van = APPEARANCES['car'][look].shape == 'van'
    body = half * (0.85 if van else 0.45)
    wheel = half * 0.2
    base = y - wheel * 0.7
    if van:
        shape = [_box(x - half, base - body, x + half, base)]
        windows = [_box(x + half * 0.55, base - body * 0.85, x + half * 0.9, base - body * 0.5)]
    else:
        roof = base - body - half * 0.35
        shape = [
            _box(x - half, base - body, x + half, base),
            np.array(
                [
                    (x - half * 0.7, base - body),
                    (x - half * 0.4, roof),
                    (x + half * 0.35, roof),
                    (x + half * 0.65, base - body),
                ]
            ),
        ]
        glass = roof + half * 0.08
        windows = [
            np.array(
                [
                    (x - half * 0.5, base - body),
                    (x - half * 0.33, glass),
                    (x + half * 0.28, glass),
                    (x + half * 0.48, base - body),
                ]
            )
        ]
    wheels = [_disc(x + side * half * 0.6, y - wheel, wheel, corners=10) for side in (-1, 1)]
    canvas.paint('car', look, shape + wheels)
    canvas.tint(windows, (60, 70, 85))
    canvas.tint(wheels, (25, 25, 28))


def _draw_sign(canvas: _Canvas, look: int, x: float, y: float, scale: float) -> None:
    high, radius = canvas.rng.uniform(22, 32) * scale, canvas.rng.uniform(7, 10) * scale
    pole = _box(x - 0.8 * scale, y - high, x + 0.8 * scale, y)
    shape = APPEARANCES['sign'][look].shape
    face = {
        'disc': _disc(x, y - high, radius),
        'diamond': _disc(x, y - high, radius * 1.35, corners=4),
        'square': _box(x - radius, y - high - radius, x + radius, y - high + radius),
    }[shape]
    canvas.paint('sign', look, [pole, face])
    canvas.tint([_box(x - 0.8 * scale, y - high + radius, x + 0.8 * scale, y)], (130, 130, 135))
    if shape == 'disc':
        canvas.tint([_disc(x, y - high, radius * 0.55)], (235, 235, 235))


def _draw_person(canvas: _Canvas, look: int, x: float, y: float, scale: float) -> None:
    high = canvas.rng.uniform(24, 32) * scale
    wide, head = high * 0.2, high * 0.11
    legs = [
        _box(x - wide * 0.8, y - high * 0.45, x - wide * 0.1, y),
        _box(x + wide * 0.1, y - high * 0.45, x + wide * 0.8, y),
    ]
    torso = _box(x - wide, y - high * 0.82, x + wide, y - high * 0.4)
    face = [_disc(x, y - high + head, head, corners=10)]
    canvas.paint('person', look, [*legs, torso, *face])
    canvas.tint(legs, (50, 55, 80))
    canvas.tint(face, (215, 170, 140))


# drawer and how many there are of it, at least and at most
_THINGS = {
    'tree': (_draw_tree, 1, 3),
    'car': (_draw_car, 1, 3),
    'sign': (_draw_sign, 1, 2),
    'person': (_draw_person, 1, 4),
}


def render_scene(
    rng: np.random.Generator, size: Tuple[int, int] = (128, 128), border: int = 0
) -> Scene:
    """Render one scene.

    Args:
        rng (np.random.Generator): Decides everything.
        size (tuple[int, int]): Height and width in pixels, each at least 32.
        border (int): Width in pixels of the ignored line between classes.

    Returns:
        Scene: Image and maps.
    """
    height, width = size
    canvas = _Canvas(height, width, rng)
    looks = {name: len(appearances) for name, appearances in APPEARANCES.items()}

    def look(name: str) -> int:
        return int(rng.integers(looks[name]))

    horizon = int(rng.uniform(0.35, 0.6) * height)
    canvas.paint('sky', look('sky'), [_box(0, 0, width, horizon)])
    canvas.paint('ground', look('ground'), [_box(0, horizon, width, height)])
    for _ in range(rng.integers(1, 5)):
        _draw_building(canvas, look('building'), horizon)
    _draw_road(canvas, look('road'), horizon)
    things = []
    for name, (draw, least, most) in _THINGS.items():
        for _ in range(rng.integers(least, most + 1)):
            depth = rng.uniform(0.05, 1)
            things.append((depth, rng.uniform(0, width), draw, look(name)))
    for depth, x, draw, index in sorted(things, key=lambda thing: thing[0]):
        y = horizon + depth * (0.98 * height - horizon)
        draw(canvas, index, x, y, (0.6 + 0.5 * depth) * canvas.unit)

    # exposure and colour of the light, then the sensor's noise
    light = rng.uniform(0.55, 1.15) * rng.uniform(0.88, 1.12, 3)
    noise = crop_noise(WHITE_NOISE, height, width, rng)[..., None] * 24 - 12
    image = np.clip(canvas.image * light.astype(np.float32) + noise, 0, 255).astype(np.uint8)
    if border:
        edge = np.zeros((height, width), np.uint8)
        edge[:, :-1] |= canvas.label[:, :-1] != canvas.label[:, 1:]
        edge[:-1] |= canvas.label[:-1] != canvas.label[1:]
        if border > 1:
            edge = cv2.dilate(edge, np.ones((border, border), np.uint8))
        canvas.label[edge > 0] = canvas.appearance[edge > 0] = VOID
    return Scene(image, canvas.label, canvas.appearance)
