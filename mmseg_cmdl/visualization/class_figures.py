"""Figures of classes in a feature space: bars, similarity of centres, variance of channels."""

from typing import Any, Dict, Optional, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .style import LINES, fold, legend_columns, new_figure, write_cell

HATCHES = ('', '//', '..', 'xx', '\\\\', 'oo')


def _look(i: int) -> Dict[str, Any]:
    """Of the bars of the i-th model."""
    hatch = HATCHES[i // len(LINES) % len(HATCHES)]
    return dict(color=LINES[i % len(LINES)], hatch=hatch, edgecolor='white', linewidth=0.4)


def draw_class_bars(
    panels: Dict[str, Dict[str, np.ndarray]], names: Sequence[str], higher_is_better: Sequence[bool]
) -> Figure:
    """One panel a quantity, a bar for each class and model.

    Args:
        panels (dict): Title of the panel to {name of the model: values [K]}; NaN draws no bar.
        names (Sequence[str]): Names of the classes.
        higher_is_better (Sequence[bool]): For each panel; written below it.
    """
    models = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    figure = new_figure(
        3.1 * len(panels) + 1.2, max(3.2, 0.17 * len(names) * (len(models) + 1) + 1.5)
    )
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    height, rows = 0.84 / len(models), np.arange(len(names))
    bars = {}
    for axis, (title, panel), higher in zip(axes, panels.items(), higher_is_better):
        for i, model in enumerate(models):
            if model in panel:
                bars[model] = axis.barh(
                    rows + (i - (len(models) - 1) / 2) * height,
                    panel[model],
                    height,
                    **_look(i),
                )
        axis.set_title(title, fontsize=10)
        axis.set_xlabel('more is better' if higher else 'less is better', fontsize=8, color='0.35')
        axis.grid(axis='x', color='0.88')
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=9)
    axes[0].set_yticks(rows, names)
    axes[0].invert_yaxis()
    figure.legend(
        list(bars.values()),
        list(bars),
        loc='outside lower center',
        frameon=False,
        ncols=legend_columns(figure, list(bars), 9),
        fontsize=9,
    )
    return figure


def draw_class_dependency(
    matrices: Dict[str, np.ndarray],
    names: Sequence[str],
    title: str,
    notes: Optional[Sequence[str]] = None,
) -> Figure:
    """Similarity of class centres, a panel for each model; with two models their difference.

    Args:
        matrices (dict): Name of the model to [K, K]; NaN for absent classes.
        names (Sequence[str]): Names of the classes, on the axes.
        title (str): What a cell is.
        notes (Sequence[str], optional): A line for each model under its name.
    """
    count = len(names)
    side = min(30, max(3.4, 0.16 * count + 1.9))
    difference = len(matrices) == 2
    panels = len(matrices) + difference
    figure = new_figure((side + 0.7) * panels, side + 1.2)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    off = ~np.eye(count, dtype=bool)
    values = np.concatenate([m[off] for m in matrices.values()])
    values = values[np.isfinite(values)] if np.isfinite(values).any() else np.zeros(1)
    low, high = values.min(), values.max()
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    notes = notes or [''] * len(matrices)
    for axis, (name, matrix), note in zip(axes, matrices.items(), notes):
        image = _matrix(axis, np.where(off, matrix, np.nan), names, 'viridis', low, high)
        folded = fold(name, side, 10)
        axis.set_title(f'{folded}\n{note}' if note else folded, fontsize=10)
        figure.colorbar(image, ax=axis, shrink=0.75, pad=0.02)
    if difference:
        (first, a), (second, b) = matrices.items()
        change = np.where(off, b - a, np.nan)
        largest = max(np.nanmax(np.abs(change), initial=0), 1e-9)
        image = _matrix(axes[-1], change, names, 'PuOr', -largest, largest)
        axes[-1].set_title(
            fold(
                f'difference: {second} minus {first}\norange: less dependent, purple: more',
                side,
                10,
            ),
            fontsize=10,
        )
        figure.colorbar(image, ax=axes[-1], shrink=0.75, pad=0.02)
    figure.suptitle(title, fontsize=12, fontweight='bold')
    return figure


def _matrix(
    axis: Axes, matrix: np.ndarray, names: Sequence[str], cmap: str, low: float, high: float
) -> Any:
    count = len(names)
    colors = colormaps[cmap].with_extremes(bad='0.9')
    image = axis.imshow(matrix, cmap=colors, vmin=low, vmax=high)
    size = 9 if count <= 12 else 7.5
    axis.set_xticks(range(count), names, fontsize=size, rotation=90)
    axis.set_yticks(range(count), names, fontsize=size)
    if count <= 12:
        for row, col in np.ndindex(count, count):
            value = float(matrix[row, col])
            if np.isfinite(value):
                shade = colors((value - low) / (high - low))
                write_cell(axis, row, col, _two_digits(value), shade, 6.5)
    return image


def _two_digits(value: float) -> str:
    """'.13', '-.07', '0', '1.20'."""
    text = f'{value:.2f}'
    return '0' if float(text) == 0 else text.replace('0.', '.', 1) if abs(value) < 1 else text


def draw_channel_variance(variances: Dict[str, np.ndarray], bins: int, log: bool) -> tuple:
    """How many channels have which class-wise variance (DGCW, fig. 3).

    Args:
        variances (dict): Name of the model to its class-wise variance [C].
        bins (int): Number of intervals, the same for all models.
        log (bool): Intervals even on a logarithmic scale.

    Returns:
        tuple[Figure, np.ndarray, dict]: The figure, edges [bins + 1] and channels of each model in
        each interval [bins].
    """
    values = np.concatenate(list(variances.values()))
    if log:
        positive = values[values > 0]
        low, high = (positive.min(), positive.max()) if positive.size else (0.1, 1)
        high = high if high > low else 10 * low
        edges = np.geomspace(low, high, bins + 1)
    else:
        edges = np.linspace(0, max(values.max(), 1e-12), bins + 1)
    counts = {
        name: np.histogram(np.clip(v, edges[0], edges[-1]), edges)[0]
        for name, v in variances.items()
    }
    figure = new_figure(max(7, 0.55 * bins + 1.5), 3.9)
    axis = figure.subplots()
    width = 0.84 / len(counts)
    for i, (name, number) in enumerate(counts.items()):
        place = np.arange(bins) + 0.5 + (i - (len(counts) - 1) / 2) * width
        label = f'{name} (mean {variances[name].mean():.3g}, {len(variances[name])} channels)'
        axis.bar(
            place,
            number,
            width,
            label=label,
            **_look(i),
        )
    axis.set_xticks(range(bins + 1), [f'{edge:.2g}' for edge in edges], fontsize=8, rotation=45)
    axis.set_xlabel('class-wise variance of the channel')
    axis.set_ylabel('channels')
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(axis='y', color='0.88')
    axis.set_axisbelow(True)
    figure.legend(loc='outside upper center', handlelength=1.4, fontsize=9, frameon=False)
    return figure, edges, counts
