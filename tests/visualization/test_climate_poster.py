"""The demo's picture: what is where in it, that texts fit, and that shades can be told apart."""

import itertools

import numpy as np
import pytest

from mmseg_cmdl.datasets import EarthClimateDataset
from mmseg_cmdl.visualization import EarthMap, ShownDistribution, draw_climate_poster
from mmseg_cmdl.visualization.climate_poster import color_earth, join_strips, shades

NAMES = EarthClimateDataset.METAINFO['classes']
PALETTE = [tuple(color) for color in EarthClimateDataset.METAINFO['palette']]
H, W = 107, 270
STRIPS = ((60, 90), (150, 180), (240, 270))
PATCHES = {k: (40 * k, 250 - 40 * k, 90) for k in range(1, 6)}  # a colour for each class


def distributions(k, count):
    patch = np.full((8, 8, 3), PATCHES[k], np.uint8)
    return [ShownDistribution(0.2, [patch] * 3, ['14°N 102°E'] * 3) for _ in range(count)]


@pytest.fixture(scope='module')
def earth():
    """Each class a band of columns, from top to bottom its distributions; five of them have 4."""
    classes = np.repeat(np.arange(W) * 6 // W, H).reshape(W, H).T
    number = np.repeat(np.arange(H) * 4 // H, W).reshape(H, W)
    shown = [[], *(distributions(k, 4) for k in range(1, 6))]
    return EarthMap(classes.astype(np.uint8), number.astype(np.uint8), shown)


def shade(k, n):
    return shades(PALETTE[k], 4)[n]


def draw(earth, models=3):
    picture = np.full((H, W, 3), (90, 60, 30), np.uint8)
    truth = np.full((H, W), 2, np.uint8)
    predictions = {f'model {i}': (np.full((H, W), 3 + i % 3, np.uint8), f'mIoU {i}0.0')
                   for i in range(models)}  # fmt: skip
    note = "A small ResNet-18, trained from scratch on three quarters of the Earth's longitudes"
    return draw_climate_poster(picture, truth, predictions, earth, STRIPS, PALETTE, NAMES, note)


def pixels_of(figure, dpi=50):
    figure.set_dpi(dpi)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)


def share(pixels, color, tolerance=2):
    return (abs(pixels - np.array(color)) <= tolerance).all(axis=-1).mean()


def boxes(figure):
    """Pixels of each axis, as slices, in the order in which they were made."""
    height = figure.bbox.height
    for axis in figure.axes:
        box = axis.get_window_extent()
        yield (
            slice(round(height - box.y1), round(height - box.y0)),
            slice(round(box.x0), round(box.x1)),
        )


def test_each_panel_shows_what_it_says(earth):
    figure = draw(earth)
    page = pixels_of(figure)
    world, *rest = (page[box] for box in boxes(figure))
    # the sea as the picture at 55%, then 4 shades of each of five classes
    assert share(world, (49, 33, 16)) > 0.1
    for k, n in itertools.product(range(1, 6), range(4)):
        assert 0.02 < share(world, shade(k, n)) < 0.07, (k, n)
    columns, keys, panels = rest[:80], rest[80:86], rest[86:]
    for i, (k, n) in enumerate(itertools.product(range(1, 6), range(4))):
        chip, *patches = columns[4 * i : 4 * i + 4]
        assert share(chip, shade(k, n)) > 0.4  # the rest is the percentage
        assert len(patches) == 3
        for patch in patches:
            assert share(patch, PATCHES[k]) > 0.5  # the rest is the place
    for key, color in zip(keys[::-1], PALETTE):
        assert share(key, color) > 0.8
    assert len(panels) == 5
    for panel, color in zip(panels, [(90, 60, 30), *(PALETTE[k] for k in (2, 3, 4, 5))]):
        # three strips, and the page between them
        assert 0.9 < share(panel, color) < 0.98


def test_texts_are_on_the_page_and_apart(earth):
    figure = draw(earth)
    pixels_of(figure, 110)
    texts = [*figure.texts, *(text for axis in figure.axes for text in axis.texts)]
    extents = {}
    for i, text in enumerate(texts):
        box = text.get_window_extent()
        assert min(box.x0, box.y0) >= 0, text
        assert box.x1 <= figure.bbox.width, text
        assert box.y1 <= figure.bbox.height, text
        extents[i] = box
        # 11 pixels at the size that the demo writes
        assert text.get_fontsize() * 110 / 72 > 11
    for (i, a), (j, b) in itertools.combinations(extents.items(), 2):
        assert not a.overlaps(b), (texts[i], texts[j])
    shown = {text.get_text() for text in texts}
    assert {'held out', 'true climate', 'satellite picture', *NAMES} <= shown
    assert any('NASA Blue Marble' in text and 'Rubel et al.' in text for text in shown)


def test_a_bank_of_which_nothing_is_shown_still_gives_a_page(earth):
    figure = draw(EarthMap(earth.classes, earth.distributions, [[]] * 6), models=1)
    page = pixels_of(figure)
    (world, *_) = (page[box] for box in boxes(figure))
    assert share(world, (49, 33, 16)) > 0.8


def test_where_a_class_has_no_distribution_the_picture_is_left(earth):
    picture = np.full((H, W, 3), 100, np.uint8)
    shown = [[], *earth.shown[1:5], []]
    colored = color_earth(picture, earth._replace(shown=shown), PALETTE)
    assert (colored[earth.classes == 5] == 55).all()
    assert (colored[(earth.classes == 4) & (earth.distributions == 3)]
            == shade(4, 3)).all()  # fmt: skip


def test_strips_side_by_side():
    picture = np.arange(12, dtype=np.uint8).reshape(1, 4, 3)
    joined = join_strips(picture, [(0, 1), (3, 4)], gap=2)
    assert joined.tolist() == [[[0, 1, 2], [11, 22, 34], [11, 22, 34], [9, 10, 11]]]


def lightness(color):
    """CIE L*, which is left to those who don't tell colours."""
    linear = np.array(color) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    y = linear @ (0.2126, 0.7152, 0.0722)
    return 116 * np.cbrt(y) - 16 if y > 0.008856 else 903.3 * y


@pytest.mark.parametrize('count', [2, 3, 4])
def test_shades_of_a_class_are_even_steps_of_lightness(count):
    for color in PALETTE[1:]:
        found = [lightness(rgb) for rgb in shades(color, count)]
        np.testing.assert_allclose(found, np.linspace(32, 84, count), rtol=0, atol=1.5)


def test_one_shade_is_the_color_itself():
    assert shades((1, 2, 3), 1).tolist() == [[1, 2, 3]]
