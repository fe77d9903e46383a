"""Pixels and distributions in the plane, a panel for each model."""

from typing import Any, Dict, Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .style import (
    MARKERS,
    distinct_colors,
    fold,
    legend_columns,
    new_figure,
    readable_text_color,
)


def draw_feature_space(panels: Dict[str, Any], names: Sequence[str], method: str) -> Figure:
    """Points of each class in a colour and with a marker of its own, and the bank's distributions
    as large numbered marks.

    Args:
        panels (dict): Name of the model to what :func:`mmseg_cmdl.analysis.embed_sample` gives.
        names (Sequence[str]): Names of all classes.
        method (str): For the title.
    """
    figure = new_figure(5.2 * len(panels), 5.9)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    classes = list(dict.fromkeys(k for e in panels.values() for k in e.labels.tolist()))
    colors = {
        k: tuple(part / 255 for part in c) for k, c in zip(classes, distinct_colors(len(classes)))
    }
    shapes = {k: MARKERS[i % len(MARKERS)] for i, k in enumerate(classes)}
    marked = False
    for axis, (name, embedded) in zip(axes, panels.items()):
        for k in classes:
            points = embedded.points[embedded.labels == k]
            axis.scatter(
                *points.T, s=16, color=[colors[k]], marker=shapes[k], alpha=0.65, linewidths=0
            )
        if embedded.distributions is not None:
            marked = True
            for (k, n), (x, y) in zip(
                embedded.distribution_labels.tolist(), embedded.distributions
            ):
                if k in colors:
                    axis.scatter(
                        x,
                        y,
                        s=190,
                        color=colors[k],
                        marker=shapes[k],
                        edgecolor='black',
                        linewidth=1.3,
                        zorder=3,
                    )
                    # in the mark, so that numbers of neighbours don't cover one another
                    axis.annotate(
                        str(n),
                        (x, y),
                        fontsize=7.5,
                        fontweight='bold',
                        color=readable_text_color(colors[k]),
                        ha='center',
                        va='center_baseline',
                        zorder=3,
                    )
        score = embedded.silhouette
        axis.set_title(
            fold(name, 5, 10)
            + ('' if score is None else f'\nsilhouette of the classes {score:.3f}'),
            fontsize=10,
        )
        axis.set_xticks([])
        axis.set_yticks([])
    handles = [
        Line2D(
            [], [], linestyle='', marker=shapes[k], color=colors[k], label=names[k], markersize=7
        )
        for k in classes
    ]
    if marked:
        handles.append(
            Line2D(
                [],
                [],
                linestyle='',
                marker='o',
                color='white',
                markersize=12,
                markeredgecolor='black',
                label='distribution of the bank',
            )
        )
    labels = [str(handle.get_label()) for handle in handles]
    figure.legend(
        handles,
        labels,
        loc='outside lower center',
        fontsize=9,
        frameon=False,
        ncols=legend_columns(figure, labels, 9),
    )
    title = dict(tsne='t-SNE', umap='UMAP', pca='PCA')[method]
    figure.suptitle(f'{title} of pixel features', fontsize=12, fontweight='bold')
    return figure
