"""Costs of modules as bars."""

from typing import Sequence

import numpy as np
from matplotlib.figure import Figure

from .style import LINES, new_figure

PANELS = (
    ('params_m', 'parameters, millions'),
    ('gmacs', 'multiply-adds, billions'),
    ('ms', 'time, ms'),
    ('peak_mib', 'memory, MiB'),
)


def draw_complexity(rows: Sequence[dict], title: str) -> Figure:
    """A panel for each cost, a bar for each module.

    Args:
        rows (Sequence[dict]): `module` and what `measure_complexity` gives.
        title (str): Title of the figure.
    """
    panels = [panel for panel in PANELS if any(row.get(panel[0]) is not None for row in rows)]
    figure = new_figure(2.7 * len(panels) + 1.4, 0.38 * len(rows) + 1.5)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    places = np.arange(len(rows))
    for axis, (key, label), color in zip(axes, panels, LINES):
        values = [row[key] if row.get(key) is not None else 0 for row in rows]
        bars = axis.barh(places, values, 0.7, color=color)
        axis.bar_label(
            bars, [f'{v:.3g}' if v < 1000 else f'{v:.0f}' for v in values], fontsize=8, padding=2
        )
        axis.set_xlim(0, 1.25 * max(max(values), 1e-9))
        axis.set_title(label, fontsize=10)
        axis.tick_params(labelsize=9)
        axis.locator_params(axis='x', nbins=4)
    axes[0].set_yticks(places, [row['module'] for row in rows])
    axes[0].invert_yaxis()
    figure.suptitle(title, fontsize=11, fontweight='bold')
    return figure
