"""Compactness, class dependency and class-wise variance against two-pass loops in float64."""

import functools

import numpy as np
import pytest
import torch

from mmseg_cmdl.analysis import ClassStatistics, ExaminedModel, off_diagonal_mean
from tests.analysis.conftest import IMAGES, NUM_CLASSES, run_tool, tool


@functools.cache
def pixels_of(pair, kind='classifier', indices=tuple(range(IMAGES)), unit=False):
    """All labelled features of the scenes [P, C] and their labels [P]."""
    model, features, labels = ExaminedModel.load(*pair), [], []
    for index in indices:
        maps = model.example(index, kind).features.double().numpy()
        truth = model.dataset.render(index).label[::8, ::8]
        features.append(maps[truth != 255])
        labels.append(truth[truth != 255])
    features = np.concatenate(features)
    if unit:
        features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features, np.concatenate(labels)


def test_by_hand():
    statistics = ClassStatistics(3, normalize=False)
    statistics.add(torch.tensor([[0.0, 0], [2, 0], [9, 9]]), torch.tensor([0, 0, 255]))
    statistics.add(torch.tensor([[4.0, 3], [4, 5], [torch.nan, 1]]), torch.tensor([2, 2, 2]))
    np.testing.assert_array_equal(statistics.centers, [[1, 0], [np.nan] * 2, [4, 4]])
    np.testing.assert_array_equal(statistics.intra_class_variance, [1, np.nan, 1])
    assert statistics.center_distances[0, 2] == 5
    np.testing.assert_array_equal(statistics.channel_variance, [2.25, 4])
    assert statistics.summary() == dict(
        intra_class_variance=1,
        relative_variance=pytest.approx(4 / 29),  # overall mean (2.5, 2)
        center_similarity=pytest.approx(2**-0.5),
        largest_center_similarity=pytest.approx(2**-0.5),
        center_distance=5,
        nearest_center_distance=5,
        separation=2.5,
    )
    assert statistics.similarity('dot')[0, 2] == 4
    assert statistics.similarity('cosine')[2, 0] == pytest.approx(2**-0.5)
    soft = statistics.similarity('softmax')
    assert soft[0, 2] == pytest.approx(1 / (1 + np.exp((1 - 4) / 2**0.5)))
    np.testing.assert_allclose(soft[0, [0, 2]].sum(), 1)
    assert np.isnan(soft[1]).all()
    assert np.isnan(soft[:, 1]).all()
    assert off_diagonal_mean(statistics.similarity('dot')) == 4


def test_lengths_are_one_and_one_class_has_no_pairs():
    statistics = ClassStatistics(2)
    statistics.add(torch.tensor([[3.0, 4]]), torch.tensor([1]))
    np.testing.assert_allclose(statistics.centers[1], [0.6, 0.8])
    summary = statistics.summary()
    assert summary['intra_class_variance'] == pytest.approx(0, abs=1e-12)
    assert {key for key, value in summary.items() if value is None} == {*summary} - {
        'intra_class_variance'
    }
    assert statistics.relative_variance is None  # one pixel has no variance
    with pytest.raises(ValueError, match='no features have been added'):
        ClassStatistics(2).centers  # noqa: B018
    assert ClassStatistics(2).relative_variance is None


def test_equals_loops_over_pixels():
    g = torch.Generator().manual_seed(0)
    features = torch.randn(3, 5, 6, 4, generator=g) * 2 + 1
    labels = torch.randint(0, 4, (3, 5, 6), generator=g)
    labels[labels == 2] = 255
    statistics = ClassStatistics(4, normalize=False)
    for x, y in zip(features.split(2), labels.split(2)):
        statistics.add(x, y)
    got = statistics.summary()

    pixels = {k: features[labels == k].double() for k in (0, 1, 3)}
    means = {k: sum(rows) / len(rows) for k, rows in pixels.items()}
    within = [sum(((row - means[k]) ** 2).sum() for row in rows) for k, rows in pixels.items()]
    every = torch.cat(list(pixels.values()))
    overall = sum(((row - every.mean(0)) ** 2).sum() for row in every)
    cosines = [
        torch.nn.functional.cosine_similarity(means[i], means[j], dim=0)
        for i in means
        for j in means
        if i != j
    ]
    assert got['intra_class_variance'] == pytest.approx(
        float(sum(w / len(rows) for w, rows in zip(within, pixels.values())) / 3)
    )
    assert got['relative_variance'] == pytest.approx(float(sum(within) / overall))
    assert got['center_similarity'] == pytest.approx(float(sum(cosines) / 6))
    assert got['largest_center_similarity'] == pytest.approx(float(max(cosines)))


def test_compactness_of_two_models(trained, tmp_path, capsys):
    numbers = run_tool('compactness', trained.pair, tmp_path, '--names A B')
    assert list(numbers['models']) == ['A', 'B']
    for name, pair in zip('AB', (trained.fcn, trained.mdrl)):
        features, labels = pixels_of(pair, unit=True)
        centers = np.array([features[labels == k].mean(0) for k in range(NUM_CLASSES)])
        got = numbers['models'][name]
        for k, entry in enumerate(got['classes'].values()):
            own = features[labels == k]
            assert entry['pixels'] == len(own)
            variance = ((own - centers[k]) ** 2).sum(1).mean()
            assert entry['intra_class_variance'] == pytest.approx(variance, rel=1e-4)
            others = np.delete(np.linalg.norm(centers - centers[k], axis=1), k)
            assert entry['nearest_center_distance'] == pytest.approx(others.min(), rel=1e-4)
    features, labels = pixels_of(trained.mdrl, 'embedding')
    bank = ExaminedModel.load(*trained.mdrl).head.bank.distributions.double().numpy()
    nearest = np.einsum('pz,knz->pkn', features, bank).max(2).argmax(1)
    assert got['all']['nearest_distribution_accuracy'] == pytest.approx(
        100 * (nearest == labels).mean(), rel=1e-4
    )
    assert 'nearest_distribution_accuracy' not in numbers['models']['A']['all']
    assert (tmp_path / 'compactness.png').stat().st_size > 5000
    assert '| A ' in capsys.readouterr().out


def test_class_dependency_map(trained, tmp_path):
    def run(name, arguments=''):
        return run_tool(name, trained.pair, tmp_path, f'--max-images 2 {arguments}')

    numbers = run('class_dependency', '--classes sky road')
    raw = run('class_dependency', '--raw')
    compact = run('compactness')['models']
    (fcn, mdrl) = numbers['models']
    for pair, name, found in ((trained.fcn, fcn, numbers), (trained.mdrl, mdrl, numbers),
                              (trained.mdrl, mdrl, raw)):  # fmt: skip
        features, labels = pixels_of(pair, indices=(0, 2))
        got = found['models'][name]
        if found is numbers:
            features = features / np.linalg.norm(features, axis=1, keepdims=True)
            # one name, one number
            cosine = compact[name]['all']['center_similarity']
            assert got['off_diagonal_mean'] == pytest.approx(cosine, abs=1e-6)
        present = np.unique(labels)
        centers = np.array([features[labels == k].mean(0) for k in present])
        centers /= np.linalg.norm(centers, axis=1, keepdims=True)
        similarity = np.array(got['similarity'], dtype=float)[np.ix_(present, present)]
        np.testing.assert_allclose(similarity, centers @ centers.T, atol=1e-5)
        off = ~np.eye(len(present), dtype=bool)
        assert got['off_diagonal_mean'] == pytest.approx(similarity[off].mean(), abs=1e-5)


def test_channel_variance(trained, tmp_path):
    arguments = '--features backbone --bins 5 --log'
    numbers = run_tool('channel_variance', trained.fcn, tmp_path, arguments)
    features, labels = pixels_of(trained.fcn, 'backbone')
    centers = np.array([features[labels == k].mean(0) for k in range(NUM_CLASSES)])
    (got,) = numbers['models'].values()
    np.testing.assert_allclose(got['variance'], centers.var(axis=0), rtol=1e-4)
    assert sum(got['channels']) == 32
    edges = numbers['edges']
    assert len(edges) == 6
    inside = np.sum((centers.var(axis=0) > edges[2]) & (centers.var(axis=0) <= edges[3]))
    assert abs(got['channels'][2] - inside) <= 1  # a value on an edge may fall to either side


def test_as_many_names_as_models(tmp_path, capsys):
    with pytest.raises(SystemExit):
        tool('compactness').main(['a.py', 'a.pth', '--names', 'x', 'y', '--out', str(tmp_path)])
    assert '--names has 2 names for 1 models' in capsys.readouterr().err
