"""Figures of a study, from what its study.json holds."""

from typing import Any, Dict, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .style import LINES, fold, new_figure, write_cell

_BASELINE = '0.45'
_COLORS = {'better': LINES[2], 'worse': LINES[4], 'hint': LINES[0], 'open': '0.35'}
_WORDS = {
    'better': 'better',
    'worse': 'worse',
    'hint': 'a hint only',
    'open': 'no difference shown',
    'control': 'control',
}


def _kind(arm: dict) -> str:
    return arm['verdict']['kind'] if 'verdict' in arm else 'control'


def draw_differences(study: dict) -> Figure:
    """Left the scores of all runs, right their differences to the baseline with intervals.

    Args:
        study (dict): What study.json holds.
    """
    arms = [arm for arm in study['arms'] if arm['mIoU']['count']]
    figure = new_figure(10.5, 0.42 * len(arms) + 1.9)
    scores, differences = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.35))
    used = []
    for place, arm in enumerate(arms):
        kind = _kind(arm)
        color = _COLORS.get(kind, '0.6')
        if arm['name'] == study['baseline']:
            color = _BASELINE
        else:
            used.append(kind)
        failed = arm['failures']
        for seed, found in arm['scores'].items():
            _dot(scores, found['mIoU'], place, color, seed in failed)
        mean, std = arm['mIoU']['mean'], arm['mIoU']['std'] or 0
        scores.plot([mean - std, mean + std], [place, place], color=color, lw=1.5)
        scores.plot([mean], [place], marker='|', ms=13, mew=2.5, color=color)
        if 'difference' not in arm:
            continue
        difference = arm['difference']
        for seed, value in difference['seeds'].items():
            _dot(differences, value, place, color, seed in failed)
        found = difference['mIoU']
        if found['low'] is not None:
            differences.plot([found['low'], found['high']], [place, place], color=color, lw=2.5)
        if difference['images']:
            low, high = difference['images']
            differences.plot([low, high], [place + 0.3] * 2, color=color, lw=1.2, ls=(0, (2, 1)))
        if found['mean'] is not None:
            differences.plot([found['mean']], [place], marker='|', ms=13, mew=2.5, color=color)
    differences.axvline(0, color=_BASELINE, lw=1, zorder=0)
    _limit(differences, arms)
    scores.set_yticks(range(len(arms)), [_label(arm) for arm in arms], fontsize=9)
    scores.set_ylim(len(arms) - 0.5, -0.5)
    scores.set_title('mIoU of each run, mean and standard deviation', fontsize=10)
    differences.set_title(
        f'difference to {study["baseline"]}, seed by seed, and its 95 % interval', fontsize=10
    )
    for axis in (scores, differences):
        axis.tick_params(labelsize=9)
        axis.grid(axis='x', color='0.92')
        axis.set_axisbelow(True)
        axis.set_xlabel('points of mIoU', fontsize=9)
    handles = [
        Line2D([], [], color=_COLORS.get(kind, '0.6'), lw=2.5, label=_WORDS[kind])
        for kind in _WORDS
        if kind in used
    ]
    if any(arm.get('difference', {}).get('images') for arm in arms):
        handles.append(
            Line2D([], [], color='0.35', lw=1.2, ls=(0, (2, 1)), label='over validation images')
        )
    if any(arm['failures'] for arm in arms):
        handles.append(Line2D([], [], color='0.35', marker='x', ls='', label='failed run'))
    if handles:
        figure.legend(
            handles=handles, loc='outside lower center', ncols=6, fontsize=8.5, frameon=False
        )
    return figure


def _limit(axis: Axes, arms: Sequence[dict]) -> None:
    """Shows all seeds; the interval of two or three runs on to the edge."""
    found = [arm['difference'] for arm in arms if 'difference' in arm]
    seeds = [0.0, *(value for one in found for value in one['seeds'].values())]
    low, high = min(seeds), max(seeds)
    span = max(high - low, 0.5)
    left, right = axis.get_xlim()
    axis.set_xlim(max(left, low - 0.6 * span), min(right, high + 0.6 * span))


def _dot(axis: Axes, value: float, place: float, color: str, failed: bool) -> None:
    style: Dict[str, Any] = (
        dict(marker='x', ms=6, mew=1.5) if failed else dict(marker='o', ms=4.5, alpha=0.45)
    )
    axis.plot([value], [place], color=color, ls='', markeredgecolor=color, **style)


def _label(arm: dict) -> str:
    name = fold(arm['name'], 1.9, 9)
    return name if not arm['failures'] else f'{name} ({len(arm["failures"])} failed)'


def draw_curves(study: dict) -> Figure:
    """A panel for each arm: its learning curve and the baseline's, with their spread.

    Args:
        study (dict): What study.json holds.
    """
    arms = [arm for arm in study['arms'] if arm['curve']]
    base = next((arm for arm in arms if arm['name'] == study['baseline']), None)
    shown = [arm for arm in arms if arm is not base] or arms
    columns = min(4, len(shown))
    lines = -(-len(shown) // columns)
    figure = new_figure(2.7 * columns + 0.5, 2.1 * lines + 0.7)
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for axis, arm in zip(axes.flat, shown):
        if base is not None:
            _curve(axis, base['curve'], _BASELINE)
        if arm is not base:
            color = _COLORS.get(_kind(arm), '0.6')
            _curve(axis, arm['curve'], LINES[0] if color.startswith('0') else color)
        axis.set_title(fold(arm['name'], 2.3, 9.5), fontsize=9.5)
        axis.tick_params(labelsize=8)
        axis.grid(color='0.92')
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    for axis in axes.flat[max(0, len(shown) - columns) : len(shown)]:
        axis.tick_params(labelbottom=True)
    figure.supxlabel('iteration', fontsize=9)
    figure.supylabel('validation mIoU', fontsize=9)
    figure.suptitle(
        f'Learning curves: mean of the seeds, band of one standard deviation; grey: '
        f'{study["baseline"]}',
        fontsize=10,
    )
    return figure


def _curve(axis: Axes, curve: Sequence, color: str) -> None:
    iterations, mean, std, _ = (np.array(column, float) for column in zip(*curve))
    std = np.nan_to_num(std)
    axis.fill_between(iterations, mean - std, mean + std, color=color, alpha=0.2, lw=0)
    axis.plot(iterations, mean, color=color, lw=1.8, marker='o', ms=3)


def draw_classes(study: dict, most: int = 40) -> Figure:
    """Difference of each class's IoU to the baseline; bold where its interval holds without 0.

    Args:
        study (dict): What study.json holds.
        most (int): Classes shown: of more, those that some arm changes most.
    """
    arms = [arm for arm in study['arms'] if arm.get('classes')]
    means = np.array([[c['mean'] for c in arm['classes']] for arm in arms], float)  # None: NaN
    sure = np.array(
        [[(c['adjusted_p'] is not None and c['adjusted_p'] < 0.05) for c in a['classes']]
         for a in arms]
    )  # fmt: skip
    size = np.abs(np.nan_to_num(means)).max(axis=0)
    chosen = np.sort(np.argsort(-size, kind='stable')[:most])
    limit = max(1.0, float(size.max()))
    figure = new_figure(0.62 * len(chosen) + 2.6, 0.38 * len(arms) + 1.9)
    axis = figure.subplots()
    colors = matplotlib.colormaps['PuOr_r']
    picture = axis.imshow(means[:, chosen], cmap=colors, vmin=-limit, vmax=limit, aspect='auto')
    for y in range(len(arms)):
        for x, place in enumerate(chosen):
            value = means[y, place]
            if np.isfinite(value):
                weight = 'bold' if sure[y, place] else 'normal'
                shade = colors((value / limit + 1) / 2)
                write_cell(axis, y, x, f'{value:+.1f}', shade, 8, fontweight=weight)
    names = [study['classes'][i] for i in chosen]
    axis.set_xticks(range(len(names)), names, rotation=40, ha='right', fontsize=8.5)
    axis.set_yticks(range(len(arms)), [fold(a['name'], 1.9, 9) for a in arms], fontsize=9)
    axis.set_title(
        fold(
            f'IoU of each class, difference to {study["baseline"]}; bold: p < 0.05 after Holm '
            'over the classes',
            figure.get_figwidth() - 1,
            10,
        ),
        fontsize=10,
    )
    bar = figure.colorbar(picture, ax=axis, pad=0.01)
    bar.ax.tick_params(labelsize=8)
    return figure
