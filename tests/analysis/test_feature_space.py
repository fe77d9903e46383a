"""Sampling of pixels and their reduction to the plane."""

import numpy as np
import pytest
import torch

from mmseg_cmdl.analysis import (
    ExaminedModel,
    MeanSample,
    PixelSample,
    feature_space,
    reduce_to_plane,
    silhouette,
)
from mmseg_cmdl.errors import InputError
from tests.analysis.conftest import IMAGES, NUM_DISTRIBUTIONS, run_tool


def two_groups(count=40, distance=30.0):
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], count)
    return generator.normal(size=(2 * count, 6)) + distance * labels[:, None], labels


def test_the_seed_says_which_pixels_are_drawn():
    """That each has the same chance: tests/tools/test_init_memory.py."""
    features = torch.arange(60.0).view(1, 60, 1)
    drawn = []
    for seed in (0, 0, 1):
        sample = PixelSample([1], 10, seed)
        for index in (0, 1):
            sample.add(index, features, torch.ones(1, 60, dtype=torch.int64))
        values, _, places = sample.arrays()
        np.testing.assert_array_equal(places[:, 2], values[:, 0])
        drawn.append(places[:, [0, 2]].tolist())
    assert len(drawn[0]) == 10
    assert drawn[0] == drawn[1] != drawn[2]


def test_only_labelled_and_finite_pixels_are_drawn():
    sample = PixelSample([0, 2], 5)
    features = torch.tensor([[[1.0], [torch.nan], [3], [4]]])
    sample.add(7, features, torch.tensor([[0, 2, 255, 2]]))
    values, labels, places = sample.arrays()
    assert values.ravel().tolist() == [1, 4]
    assert labels.tolist() == [0, 2]
    assert places.tolist() == [[7, 0, 0], [7, 0, 3]]
    assert sample.seen == {0: 1, 2: 1}
    with pytest.raises(InputError, match='no pixel of the chosen classes'):
        PixelSample([0], 5).arrays()


def test_one_mean_for_each_class_and_image():
    """Of pixels that count, in float64; places without row and column."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(6, 4, 5, 3, generator=generator)
    labels = torch.randint(3, (6, 4, 5), generator=generator)
    labels[:, 0] = 255
    labels[4][labels[4] == 2] = 1  # an image without class 2
    maps[1, 2, 3, 0] = torch.nan
    labels[1, 2, 3] = 0
    sample = MeanSample([2, 0], 100)
    for index in range(6):
        sample.add(index, maps[index], labels[index])
    features, classes, places = sample.arrays()
    assert sample.seen == {2: 5, 0: 6}
    assert (places[:, 1:] == -1).all()
    assert set(zip(classes.tolist(), places[:, 0].tolist())) == {
        (k, index) for k in (0, 2) for index in range(6) if (k, index) != (2, 4)
    }
    for vector, k, (index, _, _) in zip(features, classes, places):
        own = [
            maps[index, i, j].double().numpy()
            for i in range(4)
            for j in range(5)
            if labels[index, i, j] == k and not maps[index, i, j].isnan().any()
        ]
        np.testing.assert_allclose(vector, sum(own) / len(own), atol=1e-12)
    few = MeanSample([2, 0], 4)
    for index in range(6):
        few.add(index, maps[index], labels[index])
    assert np.bincount(few.arrays()[1]).tolist() == [4, 0, 4]


def test_the_command_draws_means(trained, tmp_path):
    """MCIBI, fig. 3: as many points as images have the class, whatever the number of pixels."""
    pytest.importorskip('sklearn')
    written = run_tool('feature_space', trained.mdrl, tmp_path, '--points means --method pca')
    (numbers,) = written['models'].values()
    model = ExaminedModel.load(*trained.mdrl)
    labels = [model.dataset.render(i).label[::8, ::8] for i in range(IMAGES)]
    assert numbers['means'] == {
        name: sum(bool((x == k).any()) for x in labels) for k, name in enumerate(model.classes)
    }
    assert numbers['means'] == numbers['sampled']
    assert written['points'] == 'means'
    arrays = np.load(tmp_path / 'feature_space.npz')
    assert len(arrays['0_points']) == sum(numbers['means'].values())


@pytest.mark.parametrize('method', ['pca', 'tsne'])
def test_groups_stay_apart_and_the_seed_says_all(method):
    pytest.importorskip('sklearn')
    features, labels = two_groups()
    points = reduce_to_plane(features, method, seed=1, perplexity=10)
    assert points.shape == (80, 2)
    np.testing.assert_array_equal(points, reduce_to_plane(features, method, 1, 10))
    assert silhouette(points, labels) > 0.5
    assert silhouette(features, labels) > 0.8
    assert silhouette(features, np.zeros(80)) is None


def test_what_is_missing_is_named(monkeypatch):
    def refuse(name, *_):
        raise ImportError(f'No module named {name!r}')

    monkeypatch.setattr(feature_space.importlib, 'import_module', refuse)
    with pytest.raises(
        InputError, match=r'the feature space needs scikit-learn, .* run: pip install scikit-learn'
    ):
        reduce_to_plane(np.zeros((9, 3)))


def test_few_points_and_unknown_methods_are_refused():
    with pytest.raises(InputError, match='4 points are too few'):
        reduce_to_plane(np.zeros((4, 3)))
    with pytest.raises(ValueError, match='method must be one of'):
        reduce_to_plane(np.zeros((9, 3)), 'lda')


def test_the_command_draws_pixels_and_the_bank(trained, tmp_path):
    pytest.importorskip('sklearn')
    arguments = '--names F M --classes sky road --pixels 12 --perplexity 5 --seed 3'
    numbers = run_tool('feature_space', trained.pair, tmp_path / 'a', arguments)['models']
    assert numbers['F']['features'] == 'classifier'
    assert numbers['M']['features'] == 'embedding'
    model = ExaminedModel.load(*trained.mdrl)
    labels = [model.dataset.render(i).label[::8, ::8] for i in range(IMAGES)]
    assert numbers['M']['pixels'] == {
        name: sum(int((x == model.classes.index(name)).sum()) for x in labels)
        for name in ('sky', 'road')
    }
    arrays = np.load(tmp_path / 'a' / 'feature_space.npz')
    for panel in '01':
        for (image, row, col), label in zip(arrays[f'{panel}_places'], arrays[f'{panel}_labels']):
            assert labels[image][row, col] == label
        assert arrays[f'{panel}_points'].shape == (24, 2)
    assert '0_distributions' not in arrays
    assert arrays['1_distributions'].shape == (2 * NUM_DISTRIBUTIONS, 2)
    assert np.unique(arrays['1_distribution_labels'][:, 0]).tolist() == [0, 2]
    # silhouette is that of the sampled unit vectors
    features = np.stack(
        [model.example(i, 'embedding').features[r, c].numpy() for i, r, c in arrays['1_places']]
    )
    assert numbers['M']['silhouette'] == pytest.approx(
        silhouette(features, arrays['1_labels']), rel=1e-3
    )
    run_tool('feature_space', trained.pair, tmp_path / 'b', arguments)
    for name in ('feature_space.png', 'feature_space.json'):
        assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()
