"""Nothing is cut and no title covers another, also with the long names that configs have."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from mmseg_cmdl.visualization import (
    MappedImage,
    PredictedImage,
    draw_channel_variance,
    draw_class_bars,
    draw_class_dependency,
    draw_complexity,
    draw_distribution_maps,
    draw_feature_space,
    draw_pixel_relation,
    draw_predictions,
    draw_usage,
)
from mmseg_cmdl.visualization.style import fold, legend_columns, new_figure

MODELS = [
    'fcn_r50-d8_4xb4-220k_coco-stuff164k-512x512',
    'mdrl_pspnet_r101-d8_4xb2-80k_cityscapes-512x1024',
]
CLASSES = ['sky', 'road', 'a building of many floors', 'pedestrian'] + [f'c{i}' for i in range(9)]
K, N = len(CLASSES), 3
PALETTE = [(9 * k, 200 - 9 * k, 5 * k) for k in range(K)]
RNG = np.random.default_rng(0)


def two(value):
    return dict.fromkeys(MODELS, value)


def labels(*shape):
    return RNG.integers(0, K, shape or (24, 32))


def picture():
    return RNG.integers(0, 255, (24, 32, 3)).astype(np.uint8)


def embedded(with_bank):
    return SimpleNamespace(
        points=RNG.normal(size=(4 * K, 2)),
        labels=np.arange(4 * K) % K,
        distributions=RNG.normal(size=(K * N, 2)) if with_bank else None,
        distribution_labels=np.array(list(np.ndindex(K, N))),
        silhouette=0.3,
    )


SHARES = RNG.dirichlet(np.ones(N), K)
FIGURES = dict(
    bars=lambda: draw_class_bars(
        {'a': two(RNG.random(K)), 'b': two(RNG.random(K))}, CLASSES, [0, 1]
    ),
    dependency=lambda: draw_class_dependency(
        two(RNG.random((K, K))), CLASSES, 'cosine', ['mean'] * 2
    ),
    variance=lambda: draw_channel_variance(two(RNG.random(64)), 12, False)[0],
    space=lambda: draw_feature_space(
        {MODELS[0]: embedded(False), MODELS[1]: embedded(True)}, CLASSES, 'tsne'
    ),
    space_of_one=lambda: draw_feature_space({MODELS[1]: embedded(True)}, CLASSES[:4] * 4, 'umap'),
    relation=lambda: draw_pixel_relation(
        picture(),
        [
            (
                (3, 4),
                'a building of many floors, x=100, y=200',
                two((RNG.random((3, 4)), (24, 32), labels())),
            )
        ],
        PALETTE,
        CLASSES,
        'cosine',
    ),
    predictions=lambda: draw_predictions(
        [PredictedImage(i, 'a.png', picture(), labels(), two(labels()), two(50.0)) for i in (0, 1)],
        PALETTE,
        CLASSES,
    ),
    maps=lambda: draw_distribution_maps(
        [MappedImage('image 0', picture(), labels(), labels(3, 4), RNG.integers(0, N, (3, 4)))],
        N,
        PALETTE,
        CLASSES,
    ),
    usage=lambda: draw_usage(
        SHARES, SHARES[:, 0], 100 * SHARES[:, 1], SHARES < 0.1, [[(0, 1, 0.99)]] * K, CLASSES
    ),
    complexity=lambda: draw_complexity(
        [dict(module=name, params_m=1.5, gmacs=2000.0, ms=None, peak_mib=3.0) for name in MODELS],
        'a title',
    ),
)


@pytest.mark.parametrize('name', FIGURES)
def test_nothing_is_cut_and_no_title_covers_another(name):
    figure = FIGURES[name]()
    figure.canvas.draw()
    around = figure.get_tightbbox()  # in inches, of whatever is drawn
    assert min(around.x0, around.y0) > -0.01, around
    assert around.x1 < figure.get_figwidth() + 0.01, around
    assert around.y1 < figure.get_figheight() + 0.01, around
    titles = [axis.title for axis in figure.axes] + [figure._suptitle]
    titles = [title for title in titles if title is not None and title.get_text()]
    for a, b in itertools.combinations(titles, 2):
        assert not a.get_window_extent().overlaps(b.get_window_extent()), (a, b)


def test_titles_say_what_is_drawn():
    assert FIGURES['dependency']()._suptitle.get_text() == 'cosine'
    assert FIGURES['complexity']()._suptitle.get_text() == 'a title'


def test_a_legend_that_fits_is_one_row():
    figure = new_figure(9, 2)
    assert legend_columns(figure, ['sky', 'ground', 'road', 'building', 'tree', 'car'], 8) == 6
    assert legend_columns(figure, MODELS, 9) == 2
    assert legend_columns(figure, MODELS * 2, 9) == 2
    assert legend_columns(new_figure(2, 2), MODELS, 9) == 1


def test_names_are_broken_at_hyphens_and_underscores():
    assert fold('errors of mdrl_fcn_r50-d8', 1.0, 10) == 'errors of\nmdrl_fcn_\nr50-d8'
    assert fold('short\ntwo lines', 3, 10) == 'short\ntwo lines'
    assert fold('unbreakable', 0.1, 10) == 'unbreakable'
