"""Intervals and claims: against numbers worked out by hand, and their rates by simulation."""

import numpy as np
import pytest
import torch
from mmseg.evaluation import IoUMetric

from mmseg_cmdl.study.recorder import MAX_AREAS, pack_areas, scores, unpack_areas
from mmseg_cmdl.study.statistics import (
    Estimate,
    bootstrap_images,
    estimate,
    failures,
    half_width,
    holm,
    seeds_needed,
    verdict,
)


def test_t_interval_by_hand():
    # mean 2.5, standard error sqrt(5/3)/2 = 0.64550, t(0.975; 3) = 3.18245
    found = estimate([1.0, 2.0, 3.0, 4.0])
    assert found.count == 4
    assert found.mean == 2.5
    assert found.std == pytest.approx(1.290994)
    assert (found.low, found.high) == pytest.approx((0.445739, 4.554261), abs=1e-5)
    assert found.p == pytest.approx(0.030466, abs=1e-5)


def test_few_or_equal_values():
    assert estimate([]) == Estimate(0, None, None, None, None, None)
    assert estimate([3.0]) == Estimate(1, 3.0, None, None, None, None)
    assert estimate([0.0, 0.0]) == Estimate(2, 0.0, 0.0, 0.0, 0.0, 1.0)
    assert estimate([2.0, 2.0]) == Estimate(2, 2.0, 0.0, 2.0, 2.0, 0.0)


def test_holm_by_hand():
    # 0.01 * 3, then the larger of that and 0.03 * 2, then the larger of that and 0.04 * 1
    assert holm([0.01, 0.04, None, 0.03]) == pytest.approx([0.03, 0.06, None, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]


def test_seeds_needed_by_hand():
    # t(0.975; 10) * 3 / sqrt(11) = 2.0154, t(0.975; 11) * 3 / sqrt(12) = 1.9061
    assert half_width(3.0, 11) == pytest.approx(2.01543, abs=1e-5)
    assert seeds_needed(3.0, 2.0) == 12
    assert seeds_needed(3.0, 0.01) is None


def test_coverage_of_the_t_interval():
    generator = np.random.default_rng(0)
    inside = 0
    for values in generator.normal(1.0, 2.0, (1500, 5)):
        found = estimate(values)
        inside += found.low <= 1.0 <= found.high
    assert inside / 1500 == pytest.approx(0.95, abs=0.017)  # three standard errors


def draw_images(generator, accuracies, images, classes=3):
    """Areas [images, 3, K] of predictions that are right for a share of each image's pixels."""
    truth = generator.integers(20, 200, (images, classes))
    inside = np.rint(truth * np.clip(accuracies, 0, 1)[:, None]).astype(int)
    predicted = inside + np.roll(truth - inside, 1, axis=1)
    return np.stack([inside, predicted, truth], axis=1)


def test_coverage_of_the_bootstrap_over_images():
    """Two models of which one is right for 5 % more of each image's pixels, on drawn images."""
    generator = np.random.default_rng(0)

    def models(images):
        hard = generator.normal(0.6, 0.12, images)
        state = generator.bit_generator.state
        first = draw_images(generator, hard, images)
        generator.bit_generator.state = state  # the same labels
        second = draw_images(generator, hard + generator_noise.normal(0.05, 0.05, images), images)
        return first, second

    generator_noise = np.random.default_rng(1)
    first, second = models(200_000)
    true = float(scores(second.sum(0))['mIoU'] - scores(first.sum(0))['mIoU'])
    inside = 0
    for _ in range(200):
        first, second = models(40)
        low, high = bootstrap_images([first], [second], resamples=300)
        inside += low <= true <= high
    assert inside / 200 == pytest.approx(0.94, abs=0.05)


def test_bootstrap_of_equal_models_is_zero_and_few_images_give_none():
    areas = draw_images(np.random.default_rng(0), np.full(12, 0.7), 12)
    assert bootstrap_images([areas, areas], [areas, areas], resamples=50) == (0.0, 0.0)
    assert bootstrap_images([areas[:9]], [areas[:9]]) is None


def test_bootstrap_against_one_written_out():
    generator = np.random.default_rng(0)
    runs = [draw_images(generator, generator.normal(0.6, 0.1, 20), 20) for _ in range(4)]
    differences = []
    for _ in range(4000):
        drawn = generator.integers(0, 20, 20)
        miou = [scores(run[drawn].sum(0))['mIoU'] for run in runs]
        differences.append((miou[2] + miou[3]) / 2 - (miou[0] + miou[1]) / 2)
    expected = np.percentile(differences, [2.5, 97.5])
    found = bootstrap_images(runs[:2], runs[2:], resamples=4000)
    assert found == pytest.approx(tuple(expected), abs=0.12 * (expected[1] - expected[0]))


def count_claims(gain, studies=400, arms=4, seeds=5):
    """Shares of studies in which any arm is called better or worse, any interval is without 0."""
    generator = np.random.default_rng(0)
    claimed = naive = 0
    for _ in range(studies):
        base = generator.normal(50, 2, seeds)
        found = [estimate(generator.normal(50 + gain, 2, seeds) - base) for _ in range(arms)]
        adjusted = holm([one.p for one in found])
        kinds = [verdict(one, p, None, 'fcn', arms).kind for one, p in zip(found, adjusted)]
        claimed += any(kind in ('better', 'worse') for kind in kinds)
        naive += any(not one.low <= 0 <= one.high for one in found)
    return claimed / studies, naive / studies


def test_equal_arms_are_rarely_told_apart():
    claimed, naive = count_claims(gain=0.0)
    assert claimed <= 0.05 + 2 * 0.011
    assert naive > 0.09  # what the adjustment is for


def test_a_large_gain_is_claimed():
    claimed, _ = count_claims(gain=8.0)
    assert claimed > 0.95


def words(values, **options):
    found = estimate(values)
    options = {'adjusted_p': found.p, 'images': (0.5, 4.0), **options}
    return verdict(found, options.pop('adjusted_p'), options.pop('images'), 'fcn', **options)


def test_words_of_a_claim():
    found = words([1.0, 2.0, 3.0, 4.0])
    assert found == ('better', 'better than fcn by 2.5 [0.4, 4.6] over 4 seeds')
    found = words([-1.0, -2.0, -3.0, -4.0], images=None)
    assert found == ('worse', 'worse than fcn by 2.5 [0.4, 4.6] over 4 seeds')


@pytest.mark.parametrize(
    ('options', 'doubt'),
    [
        (dict(adjusted_p=0.09, comparisons=3), 'among 3 comparisons one looks like this by chance'),
        (dict(images=(-0.1, 3.0)), 'other images may turn it (bootstrap over images [-0.1, 3.0])'),
        (dict(missing=1), '1 runs without a score are not in it'),
    ],
)
def test_a_doubt_makes_it_a_hint(options, doubt):
    found = words([1.0, 2.0, 3.0, 4.0], **options)
    assert found.kind == 'hint'
    assert found.words.startswith(
        'a hint only: better than fcn by 2.5 [0.4, 4.6] over 4 seeds, but'
    )
    assert doubt in found.words


def test_two_seeds_never_make_a_claim():
    assert words([3.0, 3.01]).kind == 'hint'
    assert '2 seeds are too few for a claim' in words([3.0, 3.01]).words
    assert words([3.0]) == ('open', 'one seed tells nothing: add seeds')
    assert words([]).kind == 'open'


def test_words_of_an_open_question():
    # half width 3.18245 * 0.64550 * 2 = 4.11; std 2.582: t * std / sqrt(n) <= 2 from n = 9 on
    found = words([-4.0, -2.0, 0.0, 2.0], resolution=2.0)
    assert found.kind == 'open'
    assert found.words == (
        "-1.0 [-5.1, 3.1] over 4 seeds: 4 seeds can't tell less than 4.1 points apart; "
        'about 9 seeds would tell 2'
    )
    # half width 12.7062 * 2.8284 / sqrt(2)
    assert words([-2.0, 2.0]).words == (
        "+0.0 [-25.4, 25.4] over 2 seeds: 2 seeds can't tell less than 25.4 points apart; add seeds"
    )
    found = words([-0.4, -0.2, 0.0, 0.2], resolution=2.0)
    assert found.words == (
        '-0.1 [-0.5, 0.3] over 4 seeds: no difference to fcn is shown; one larger than 0.5 can be '
        'excluded'
    )


def run(seed, miou, state='finished', bad=None):
    return dict(seed=seed, mIoU=miou, state=state, first_not_finite=bad, error='out of memory')


def test_failures():
    runs = [
        run(0, 50.0),
        run(1, 25.1),
        run(2, 24.9),
        run(3, None),
        run(4, 48.0, bad=120),
        run(5, None, state='failed'),
    ]
    assert failures(runs, [40.0, 50.0, 90.0]) == {
        2: 'collapsed: mIoU 24.9',
        3: 'not finite: no score',
        4: 'not finite: a loss at iteration 121 (mIoU 48.0)',
        5: 'failed: out of memory',
    }


def test_scores_are_those_of_mmsegmentation():
    areas = draw_images(np.random.default_rng(0), np.full(5, 0.7), 5, classes=4)
    areas[:, :, 3] = 0  # a class that is nowhere
    inside, predicted, labelled = (torch.tensor(a).float() for a in areas.sum(0))
    expected = IoUMetric.total_area_to_metrics(
        inside, predicted + labelled - inside, predicted, labelled
    )
    found = scores(areas.sum(0))
    for key in ('IoU', 'Acc'):
        np.testing.assert_allclose(found[key], 100 * expected[key], rtol=1e-6)
        np.testing.assert_allclose(found[f'm{key}'], 100 * np.nanmean(expected[key]), rtol=1e-6)
    np.testing.assert_allclose(found['aAcc'], 100 * expected['aAcc'], rtol=1e-6)


def test_areas_are_packed_and_runs_of_images_summed():
    areas = np.random.default_rng(0).integers(0, 10**6, (7, 3, 4))
    np.testing.assert_array_equal(unpack_areas(pack_areas(areas)), areas)
    areas = np.random.default_rng(0).integers(0, 2**20, (301, 3, 100))
    packed = pack_areas(areas)  # room for 80 images of 300 numbers
    assert packed['images_per_unit'] == 4
    found = unpack_areas(packed)
    assert found.size <= MAX_AREAS
    np.testing.assert_array_equal(found[0], areas[:4].sum(0))
    np.testing.assert_array_equal(found.sum(0), areas.sum(0))
