"""Intervals of differences, and what may be said of them.

Seeds are pairs: both arms of a difference were trained with the same seed, so with the same order
of the same batches. Means over seeds have Student's t intervals; what other validation images would
change is estimated by a bootstrap.
"""

import math
from typing import Dict, List, NamedTuple, Optional, Sequence

import numpy as np
from scipy import stats

from .recorder import scores

#: Smallest number of seeds for which a difference is claimed.
MIN_SEEDS = 3
#: Smallest number of validation images that is bootstrapped; fewer say little about others.
MIN_IMAGES = 10


class Estimate(NamedTuple):
    """A mean over seeds and its interval; None where too few seeds don't give one."""

    # a method of tuples, here a field
    count: int  # type: ignore[assignment]  # number of values
    mean: Optional[float]
    std: Optional[float]  # of the values, n - 1
    low: Optional[float]
    high: Optional[float]
    p: Optional[float]  # two-sided, that the mean is 0


def estimate(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Mean and t interval of independent values."""
    array = np.asarray(values, float)
    count = len(array)
    if count == 0:
        return Estimate(0, None, None, None, None, None)
    mean = float(array.mean())
    if count == 1:
        return Estimate(1, mean, None, None, None, None)
    std = float(array.std(ddof=1))
    if std == 0:  # equal to the bit: SciPy's interval would be NaN
        return Estimate(count, mean, 0.0, mean, mean, float(mean == 0))
    test = stats.ttest_1samp(array, 0.0)
    low, high = test.confidence_interval(confidence)
    return Estimate(count, mean, std, float(low), float(high), float(test.pvalue))


def holm(p_values: Sequence[Optional[float]]) -> List[Optional[float]]:
    """p values adjusted after Holm (1979): all claims below a level are right together.

    The chance of any false claim among all of them is at most that level, however the tests depend
    on one another. None stays None and counts as no test.
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    out: List[Optional[float]] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        out[i] = highest
    return out


def half_width(std: float, count: int, confidence: float = 0.95) -> float:
    """Half the width of the t interval of a mean."""
    return float(stats.t.ppf((1 + confidence) / 2, count - 1)) * std / math.sqrt(count)


def seeds_needed(std: float, points: float, most: int = 1000) -> Optional[int]:
    """Seeds with which the interval of a difference reaches `points` either way; None if > most."""
    for count in range(2, most + 1):
        if half_width(std, count) <= points:
            return count
    return None


def bootstrap_images(
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Optional[tuple]:
    """Interval of the mean mIoU difference if other validation images had been drawn.

    The same images are drawn for all runs of both arms. The seeds are held as they are.

    Args:
        first, second (Sequence[np.ndarray]): Areas [images, 3, K] of each seed's run, of the
            baseline and of the other arm.
        resamples (int): Number of draws.
        confidence (float): Confidence of the interval.
        seed (int): Seed of the draws.

    Returns:
        tuple[float, float]: Percentile interval; None for fewer than :data:`MIN_IMAGES` images.
    """
    images = len(first[0])
    if images < MIN_IMAGES:
        return None
    both = np.stack([*first, *second], axis=1)  # [images, runs, 3, K]
    flat = both.reshape(images, -1).astype(float)

    def difference(drawn: np.ndarray, axis: int) -> np.ndarray:
        drawn = np.asarray(drawn).reshape(-1, images)
        # how often each image was drawn, [resamples, images]
        offsets = np.arange(len(drawn))[:, None] * images
        times = np.bincount((drawn + offsets).ravel(), minlength=len(drawn) * images)
        totals = (times.reshape(-1, images) @ flat).reshape(-1, *both.shape[1:])
        miou = scores(totals)['mIoU']  # [resamples, runs]
        return miou[:, len(first) :].mean(1) - miou[:, : len(first)].mean(1)

    found = stats.bootstrap(
        (np.arange(images),),
        difference,
        n_resamples=resamples,
        batch=200,
        vectorized=True,
        axis=-1,
        confidence_level=confidence,
        method='percentile',
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


class Verdict(NamedTuple):
    """What may be said of a difference to the baseline."""

    kind: str  # 'better', 'worse', 'hint' or 'open'
    words: str


def verdict(
    found: Estimate,
    adjusted_p: Optional[float],
    images: Optional[tuple],
    baseline: str,
    comparisons: int = 1,
    resolution: float = 2.0,
    missing: int = 0,
    level: float = 0.05,
) -> Verdict:
    """What a paired difference shows.

    'better' or 'worse' needs all of these: at least :data:`MIN_SEEDS` seeds, a score of every run
    of the arm and of the baseline, an adjusted p below `level`, and, where there is one, a
    bootstrap interval over images that excludes 0. It is a 'hint' if only the 95 % interval over
    seeds excludes 0, otherwise 'open'.

    Args:
        found (Estimate): Estimate of the differences over seeds, points of mIoU.
        adjusted_p (float, optional): Its p by :func:`holm` over all arms.
        images (tuple, optional): Bootstrap interval over images.
        baseline (str): Name of what it is compared with.
        comparisons (int): Arms compared.
        resolution (float): Points that the study should tell apart.
        missing (int): Runs without a score.
        level (float): Chance of any false claim.
    """
    if found.count < 2:
        seeds = 'no pair of seeds' if found.count == 0 else 'one seed'
        return Verdict('open', f'{seeds} tells nothing: add seeds')
    interval = f'{found.mean:+.1f} [{found.low:.1f}, {found.high:.1f}] over {found.count} seeds'
    reach = (found.high - found.low) / 2
    if found.low <= 0 <= found.high:
        beyond = max(-found.low, found.high)
        if reach > resolution:
            words = (
                f"{interval}: {found.count} seeds can't tell less than {reach:.1f} points apart; "
            )
            needed = seeds_needed(found.std, resolution)
            if found.count < MIN_SEEDS:  # their spread isn't known
                words += 'add seeds'
            elif needed is None:
                words += f'more than 1000 seeds would tell {resolution:g}'
            else:
                words += f'about {needed} seeds would tell {resolution:g}'
        else:
            words = (
                f'{interval}: no difference to {baseline} is shown; one larger than {beyond:.1f} '
                'can be excluded'
            )
        return Verdict('open', words)
    way = 'better' if found.mean > 0 else 'worse'
    amount = f'{abs(found.mean):.1f}'
    ends = sorted(abs(end) for end in (found.low, found.high))
    claim = f'{way} than {baseline} by {amount} [{ends[0]:.1f}, {ends[1]:.1f}]'
    claim += f' over {found.count} seeds'
    doubts = []
    if found.count < MIN_SEEDS:
        doubts.append(f'{found.count} seeds are too few for a claim')
    if missing:
        doubts.append(f'{missing} runs without a score are not in it')
    if adjusted_p is not None and adjusted_p >= level:
        doubts.append(
            f'among {comparisons} comparisons one looks like this by chance too often '
            f'(adjusted p {adjusted_p:.2f})'
        )
    if images is not None and images[0] <= 0 <= images[1]:
        doubts.append(
            f'other images may turn it (bootstrap over images [{images[0]:.1f}, {images[1]:.1f}])'
        )
    if doubts:
        return Verdict('hint', f'a hint only: {claim}, but ' + '; '.join(doubts))
    return Verdict(way, claim)


def failures(
    runs: Sequence[dict], baseline_miou: Sequence[float], fraction: float = 0.5
) -> Dict[int, str]:
    """Which runs of an arm failed, and how: {seed: words}.

    - 'failed': the job ended with an error and left no score.
    - 'not finite': a loss was NaN or infinite in some iteration, or the score is.
    - 'collapsed': the final mIoU is below `fraction` of the median of the baseline's runs.
    """
    level = fraction * float(np.median(baseline_miou)) if len(baseline_miou) else None
    out = {}
    for run in runs:
        if run['state'] == 'failed':
            out[run['seed']] = f'failed: {run["error"] or run["how"]}'
        elif run['mIoU'] is None:
            out[run['seed']] = 'not finite: no score'
        elif run['first_not_finite'] is not None:
            out[run['seed']] = (
                f'not finite: a loss at iteration {run["first_not_finite"] + 1} '
                f'(mIoU {run["mIoU"]:.1f})'
            )
        elif level is not None and run['mIoU'] < level:
            out[run['seed']] = f'collapsed: mIoU {run["mIoU"]:.1f}'
    return out
