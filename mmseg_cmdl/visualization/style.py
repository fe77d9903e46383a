"""Figures without matplotlib's global state, and colours that colour-blind readers tell apart."""

import re
from pathlib import Path
from typing import Any, List, Sequence, Union

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

from ..written_files import written_beside

if matplotlib.__version_info__[:2] < (3, 7):
    raise ImportError(
        'the figures of mmseg_cmdl need matplotlib >=3.7, and '
        f"{matplotlib.__version__} is installed; run: pip install 'matplotlib>=3.7'"
    )

#: Paul Tol's qualitative scheme "muted", distinct also with red- or green-blindness.
MUTED = (
    '#332288',
    '#88CCEE',
    '#44AA99',
    '#117733',
    '#999933',
    '#DDCC77',
    '#CC6677',
    '#882255',
    '#AA4499',
)
#: Okabe and Ito's colours without black and yellow, for a few lines or bars.
LINES = ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#D55E00', '#56B4E9')
MARKERS = 'osD^vP*X<>phd8'
#: where a prediction is right, wrong, or not judged
RIGHT, WRONG, IGNORED = (215, 215, 215), (213, 94, 0), (255, 255, 255)


def new_figure(width: float, height: float) -> Figure:
    """A figure of that size in inches, drawn without a display."""
    engine = ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.07)  # inches
    figure = Figure(figsize=(width, height), layout=engine)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Union[str, Path], dpi: int = 100) -> Path:
    """Writes a PNG; the same figure gives the same file."""
    with written_beside(path) as file:
        figure.savefig(file, dpi=dpi, metadata={'Software': None})
    return Path(path)


def figure_to_array(figure: Figure, dpi: int = 100) -> np.ndarray:
    """The figure as an RGB picture, uint8 [H, W, 3]."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def distinct_colors(count: int) -> List[tuple]:
    """RGB in 0..255 of so many things: :data:`LINES`, beyond six :data:`MUTED`, beyond nine a scale
    of lightness.
    """
    if count <= len(MUTED):
        scheme = LINES if count <= len(LINES) else MUTED
        return [tuple(int(color[i : i + 2], 16) for i in (1, 3, 5)) for color in scheme[:count]]
    scale = matplotlib.colormaps['viridis'](np.linspace(0, 1, count))[:, :3]
    return [tuple(int(x) for x in np.rint(255 * color)) for color in scale]


def show_picture(axis: Axes, picture: np.ndarray, title: str = '', size: float = 9) -> None:
    """A picture without ticks."""
    axis.imshow(picture, interpolation='nearest')
    axis.set_xticks([])
    axis.set_yticks([])
    if title:
        axis.set_title(title, fontsize=size)


def write_cell(
    axis: Axes, row: int, column: int, text: str, background: Any, size: float, **options: Any
) -> None:
    """Text on a cell of a matrix that `imshow` drew, in a colour that stands out from its own."""
    color = readable_text_color(background)
    options = dict(ha='center', va='center', fontsize=size, color=color, **options)
    axis.text(column, row, text, **options)


def fold(text: str, inches: float, size: float) -> str:
    """Text in lines that fit, broken after spaces, hyphens and underscores, as names of configs
    need it.
    """
    # characters, at their mean width of 0.6 em
    room, lines = max(4, int(inches * 72 / (0.6 * size))), []
    for line in text.split('\n'):
        lines.append('')
        for word in re.findall(r'[^\s_-]*[\s_-]|[^\s_-]+', line):
            if lines[-1] and len((lines[-1] + word).rstrip()) > room:
                lines.append('')
            lines[-1] += word
    return '\n'.join(line.rstrip() for line in lines)


def title_height(titles: Sequence[str], size: float) -> float:
    """Inches above a picture that the longest of its folded titles takes."""
    return 0.14 + max(title.count('\n') + 1 for title in titles) * 1.3 * size / 72


def legend_columns(figure: Figure, labels: Sequence[str], size: float) -> int:
    """Most columns of a legend that fit into the figure's width."""
    for columns in range(len(labels), 1, -1):
        # as matplotlib fills them, one column after the other
        parts = np.array_split([len(label) for label in labels], columns)
        width = sum(0.63 + part.max() * 0.6 * size / 72 for part in parts)
        if width <= figure.get_figwidth():
            return columns
    return 1


def add_class_legend(
    figure: Figure, palette: Sequence, names: Sequence[str], extra: Sequence[tuple] = ()
) -> None:
    """Legend of class colours below the figure; `extra` are further (colour, name) pairs."""
    pairs = [*zip(palette, names), *extra]
    handles = [
        Patch(facecolor=tuple(part / 255 for part in color), edgecolor='0.5', label=name)
        for color, name in pairs
    ]
    figure.legend(
        handles=handles,
        loc='outside lower center',
        ncols=legend_columns(figure, [name for _, name in pairs], 8),
        fontsize=8,
        frameon=False,
        handlelength=1,
        columnspacing=1.2,
    )


def resize_nearest(picture: np.ndarray, size: tuple) -> np.ndarray:
    """A map [h, w] or picture [h, w, 3] at another size (H, W), in integers."""
    rows, cols = (np.arange(n) * old // n for n, old in zip(size, picture.shape))
    return picture[rows[:, None], cols]


def readable_text_color(rgb: Any) -> str:
    """Black or white, whichever stands out from a background in 0..1."""
    return 'black' if np.dot(rgb[:3], (0.299, 0.587, 0.114)) > 0.55 else 'white'
