"""Heat over an image: how similar each pixel is to a marked one."""

from typing import Sequence

import numpy as np
from matplotlib.figure import Figure

from .distribution_map import color_labels
from .style import add_class_legend, fold, new_figure, show_picture, title_height


def draw_pixel_relation(
    image: np.ndarray, rows: Sequence[tuple], palette: Sequence, names: Sequence[str], kind: str
) -> Figure:
    """A row for each marked pixel: the image, then heat and prediction of each model.

    Args:
        image (np.ndarray): RGB [H, W, 3].
        rows (Sequence[tuple]): For each pixel its (row, column) in the image, a title, and
            {name of the model: (heat [h, w], (rows, columns) of the image it covers, prediction
            [H, W])}.
        palette (Sequence): RGB of the classes.
        names (Sequence[str]): Names of the classes.
        kind (str): What the heat is, for the colour bar.
    """
    models = list(rows[0][2])
    h, w = image.shape[:2]
    cell = 2.5
    titles = [fold(text, cell - 0.4, 9) for text in [*(row[1] for row in rows), *models]]
    titles += [fold(f'prediction of {name}', cell - 0.4, 9) for name in models]
    height = max(1.0, min(4.0, cell * h / w)) + title_height(titles, 9) + 0.1
    figure = new_figure(cell * (1 + 2 * len(models)) + 0.8, height * len(rows) + 0.6)
    axes = figure.subplots(len(rows), 1 + 2 * len(models), squeeze=False)
    for line, (position, title, found) in zip(axes, rows):
        show_picture(line[0], image, fold(title, cell - 0.4, 9), 9)
        values = np.concatenate([heat.ravel() for heat, _, _ in found.values()])
        # one scale for all models of a row where they share it by nature
        low, high = (min(0, values.min()), 1) if kind == 'cosine' else (None, None)
        for i, name in enumerate(models):
            heat, (rows_, cols), prediction = found[name]
            axis = line[1 + 2 * i]
            show_picture(
                axis,
                image.mean(axis=2, keepdims=True).repeat(3, axis=2).astype(np.uint8),
                fold(name, cell - 0.4, 9),
                9,
            )
            shown = axis.imshow(
                heat,
                cmap='inferno',
                alpha=0.72,
                vmin=low,
                vmax=high,
                extent=(-0.5, cols - 0.5, rows_ - 0.5, -0.5),
                interpolation='bilinear',
            )
            axis.set_xlim(-0.5, w - 0.5)
            axis.set_ylim(h - 0.5, -0.5)
            if kind != 'cosine' or i == len(models) - 1:
                figure.colorbar(shown, ax=axis, shrink=0.7, pad=0.02)
            show_picture(
                line[2 + 2 * i],
                color_labels(prediction, palette),
                fold(f'prediction of {name}', cell - 0.4, 9),
                9,
            )
        for i, axis in enumerate(line):
            y, x = position
            if i and i % 2 == 0:  # a prediction may have another size
                size = found[models[i // 2 - 1]][2].shape
                y, x = y * size[0] / h, x * size[1] / w
            axis.plot(
                x,
                y,
                'o',
                markersize=7,
                markerfacecolor='#56B4E9',
                markeredgecolor='white',
                markeredgewidth=1.5,
            )
    add_class_legend(figure, palette, names)
    return figure
