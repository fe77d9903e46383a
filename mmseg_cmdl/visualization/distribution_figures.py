"""Figures of what the distributions of a bank stand for."""

from typing import List, NamedTuple, Optional, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from .distribution_map import color_distributions, color_labels
from .style import (
    add_class_legend,
    distinct_colors,
    new_figure,
    readable_text_color,
    resize_nearest,
    show_picture,
    write_cell,
)


class MappedImage(NamedTuple):
    """An image and, at feature size, which class and distribution each pixel belongs to."""

    title: str
    image: np.ndarray  # RGB [H, W, 3]
    truth: Optional[np.ndarray]  # labels [H, W]
    classes: np.ndarray  # [h, w]; 255 where there is none
    distributions: np.ndarray  # [h, w]


def draw_distribution_maps(
    images: Sequence[MappedImage], num_distributions: int, palette: Sequence, names: Sequence[str]
) -> Figure:
    """Image, ground truth, class and distribution of each pixel, a row for each image.

    Args:
        images (Sequence[MappedImage]): Rows.
        num_distributions (int): N, the number of distributions of each class.
        palette (Sequence): RGB of the classes.
        names (Sequence[str]): Names of the classes.
    """
    figure = new_figure(9, 2.4 * len(images) + 0.7)
    axes = figure.subplots(len(images), 4, squeeze=False)
    titles = ('image', 'ground truth', 'class', 'distribution\n(dark: 0, light: N - 1)')
    for row, mapped in enumerate(images):
        size = mapped.image.shape[:2]
        nothing = mapped.classes >= len(names)
        shades = color_distributions(
            np.where(nothing, 0, mapped.classes), mapped.distributions, num_distributions, palette
        )
        shades[nothing] = 255
        blank = np.full(size, 255)
        pictures = [
            mapped.image,
            color_labels(blank if mapped.truth is None else mapped.truth, palette),
            resize_nearest(color_labels(mapped.classes, palette), size),
            resize_nearest(shades, size),
        ]
        for axis, picture, title in zip(axes[row], pictures, titles):
            show_picture(axis, picture, title if row == 0 else '', 10)
        axes[row, 0].set_ylabel(mapped.title, fontsize=8)
    add_class_legend(figure, palette, names, [((255, 255, 255), 'ignored')])
    return figure


def mark_center(patch: np.ndarray) -> np.ndarray:
    """A patch with a small black and white square around its central pixel."""
    patch, (y, x) = patch.copy(), (patch.shape[0] // 2, patch.shape[1] // 2)
    for radius, color in ((3, 0), (2, 255)):
        if min(patch.shape[:2]) < 4 * radius:
            continue
        for side in (-radius, radius):
            patch[y + side, x - radius : x + radius + 1] = color
            patch[y - radius : y + radius + 1, x + side] = color
    return patch


def draw_class(
    name: str,
    k: int,
    images: Sequence[MappedImage],
    shares: np.ndarray,
    similarity: np.ndarray,
    dead: np.ndarray,
    patches: Sequence[Sequence[np.ndarray]],
) -> Figure:
    """What each distribution of one class stands for.

    Above: images with the pixels of the class in the colour of their distribution. Below: a column
    for each distribution with its share of the class's pixels and its nearest real pixels.

    Args:
        name (str): Name of the class.
        k (int): Its index.
        images (Sequence[MappedImage]): With pixels of the class.
        shares (np.ndarray): [N].
        similarity (np.ndarray): Mean cosine of its pixels [N].
        dead (np.ndarray): Bool [N].
        patches (Sequence[Sequence[np.ndarray]]): RGB patches of each distribution.
    """
    count = len(shares)
    colors = distinct_colors(count)
    rows = max(1, max(map(len, patches), default=1))
    width = max(8, 0.95 * count)
    cell, columns = width / count, 2 * max(2, len(images))
    top = width / columns + 0.35 if images else 0.0
    figure = new_figure(width, top + cell * rows + 0.8)
    parts = figure.subfigures(
        2 if images else 1,
        1,
        squeeze=False,
        height_ratios=[top, cell * rows + 0.45] if images else [1],
    )[:, 0]
    figure.suptitle(
        f'{name}: distributions of its pixels, and the real pixels nearest to each', fontsize=11
    )
    if images:
        axes = parts[0].subplots(1, columns, squeeze=False)[0]
        for axis in axes[2 * len(images) :]:
            axis.axis('off')
        for i, mapped in enumerate(images):
            show_picture(axes[2 * i], mapped.image, mapped.title, 8)
            own = resize_nearest(
                np.where(mapped.classes == k, mapped.distributions, -1), mapped.image.shape[:2]
            )
            grey = 200 + mapped.image.mean(axis=2, keepdims=True) * 0.2  # pale, still legible
            picture = np.repeat(grey, 3, axis=2).astype(np.uint8)
            for n, color in enumerate(colors):
                picture[own == n] = color
            show_picture(axes[2 * i + 1], picture, 'distribution', 8)
    axes = parts[-1].subplots(rows, count, squeeze=False)
    for n, color in enumerate(colors):
        background = np.array(color) / 255
        share = 'none' if not np.isfinite(shares[n]) else f'{100 * shares[n]:.1f}%'
        text = f'{n}: {share}' + (
            '\ndead'
            if dead[n]
            else f'\ncos {similarity[n]:.2f}'
            if np.isfinite(similarity[n])
            else '\n'
        )
        axes[0, n].set_title(
            text,
            fontsize=8,
            color=readable_text_color(background),
            pad=4,
            bbox=dict(facecolor=background, edgecolor='none', pad=2.5),
        )
        for row in range(rows):
            axis = axes[row, n]
            if row < len(patches[n]):
                show_picture(axis, mark_center(patches[n][row]))
                for side in axis.spines.values():
                    side.set(color=background, linewidth=2)
            else:
                axis.axis('off')
                if row == 0:
                    axis.text(
                        0.5,
                        0.5,
                        'no pixel',
                        ha='center',
                        va='center',
                        fontsize=8,
                        transform=axis.transAxes,
                    )
    return figure


def draw_usage(
    shares: np.ndarray,
    spread: np.ndarray,
    accuracy: np.ndarray,
    dead: np.ndarray,
    duplicates: List[list],
    names: Sequence[str],
) -> Figure:
    """Share of its class's pixels that each distribution has, a row for each class.

    Args:
        shares (np.ndarray): [K, N]; NaN for absent classes.
        spread (np.ndarray): Entropy of the shares [K], 1 is even.
        accuracy (np.ndarray): Percentage of pixels whose nearest distribution of all is of their
            own class [K].
        dead (np.ndarray): Bool [K, N]; marked by a cross.
        duplicates (list[list]): For each class its pairs (n, m, cosine).
        names (Sequence[str]): Names of the classes.
    """
    num_classes, count = shares.shape
    wide = 0.62 * count + 1
    figure = new_figure(wide + 5, max(3, 0.3 * num_classes + 1.4))
    left, right = figure.subplots(1, 2, width_ratios=[wide, 2.6], sharey=True)
    colors = colormaps['cividis']
    largest = max(np.nanmax(shares, initial=0), 1e-9)
    image = left.imshow(shares, cmap=colors, vmin=0, vmax=largest, aspect='auto')
    for k, n in np.ndindex(*shares.shape):
        if np.isfinite(shares[k, n]):
            text = '×' if dead[k, n] else f'{100 * shares[k, n]:.0f}'
            write_cell(left, k, n, text, colors(shares[k, n] / largest), 8)
    labels = [
        name
        + (
            f'  (twins: {", ".join(f"{n}={m}" for n, m, _ in pairs[:3])}'
            f'{" ..." if len(pairs) > 3 else ""})'
            if pairs
            else ''
        )
        for name, pairs in zip(names, duplicates)
    ]
    left.set_yticks(range(num_classes), labels, fontsize=9)
    left.set_xticks(range(count))
    left.set_xlabel('distribution (× dead)')
    left.set_title("share of the class's pixels, %", fontsize=10)
    figure.colorbar(image, ax=left, format=lambda x, _: f'{100 * x:.0f}%', pad=0.02)
    rows = np.arange(num_classes)
    right.barh(rows - 0.2, spread, 0.38, color='#0072B2', label='entropy of use (1: even)')
    right.barh(
        rows + 0.2,
        np.asarray(accuracy) / 100,
        0.38,
        color='#E69F00',
        label='nearest distribution\nis of the right class',
    )
    right.set_xlim(0, 1)
    right.set_xticks([0, 0.5, 1])
    right.legend(loc='lower center', bbox_to_anchor=(0.5, 1.0), fontsize=8, frameon=False)
    right.tick_params(labelleft=False)
    right.grid(axis='x', color='0.85')
    right.set_axisbelow(True)
    return figure
