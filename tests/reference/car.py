"""CAR straight from its equations: loops, float64, autograd, nothing shared with the package.

Equation numbers are those of the CAR paper. The ``released`` forms follow the description beside
the recorded numbers. Pixels are rows: features [P, C], labels [P].
"""

import math

import torch


def centers(features, labels, num_classes, ignore_index=255):
    """Eq. 1 -> [K, C], zero for absent classes, and a list of K counts."""
    rows, counts = [], []
    for c in range(num_classes):
        own = [
            features[p]
            for p, label in enumerate(labels.tolist())
            if label == c and c != ignore_index
        ]
        counts.append(len(own))
        rows.append(sum(own) / len(own) if own else features.new_zeros(features.shape[1]))
    return torch.stack(rows), counts


def intra_c2p(features, labels, mu, formulation='paper', ignore_index=255):
    """Eq. 2, 3, the centre held constant."""
    mu = mu.detach()
    terms, channels = [], features.shape[1]
    for x, label in zip(features, labels.tolist()):
        if label != ignore_index:
            for c in range(channels):
                d = (mu[label, c] - x[c]).abs()
                terms.append(d * d if formulation == 'paper' else d)
    total = sum(terms) if terms else features.sum() * 0
    if formulation == 'paper':
        return total / max(1, len(terms))
    mean = total / features.numel()
    square = mean * mean
    return square if square > 1e-5 else square * 0 + 1e-5


def losses(features, labels, num_classes, formulation='paper'):
    """All three by name, of pixels [P, C] with labels [P]."""
    mu, counts = centers(features, labels, num_classes)
    return {
        'intra_c2p': intra_c2p(features, labels, mu, formulation),
        'inter_c2c': inter_c2c(mu, counts, formulation=formulation),
        'inter_c2p': inter_c2p(features, labels, mu, counts, formulation=formulation),
    }


def _excess(scores, own, margin):
    """Softmax of a dict class -> score; what the classes other than `own` have above the margin."""
    total = torch.stack(list(scores.values())).logsumexp(0)
    zero = 0 * total
    return sum(
        (
            torch.maximum((score - total).exp() - margin, zero)
            for c, score in scores.items()
            if c != own
        ),
        zero,
    )


def _mean(sums, formulation):
    if formulation == 'paper':
        return sum(d * d for d in sums) / len(sums)
    mean = sum(d.clamp(1e-7, 1 - 1e-7) for d in sums) / len(sums)
    return mean * mean


def _classes(counts, which):
    return [c for c, n in enumerate(counts) if n or which == 'all']


def inter_c2c(
    mu,
    counts,
    threshold=0.5,
    formulation='paper',
    classes='all',
    threshold_classes='all',
    both_sides=False,
):
    """Eq. 4-7, the column side held constant unless `both_sides`."""
    columns = mu if both_sides else mu.detach()
    taking_part = _classes(counts, classes)
    margin = threshold / max(1, len(_classes(counts, threshold_classes)) - 1)
    sums = []
    for i in taking_part:
        scores = {j: (mu[i] * columns[j]).sum() / math.sqrt(mu.shape[1]) for j in taking_part}
        sums.append(_excess(scores, i, margin))
    return _mean(sums, formulation)


def inter_c2p(
    features,
    labels,
    mu,
    counts,
    threshold=0.25,
    formulation='paper',
    classes='all',
    threshold_classes='all',
    scale=True,
    ignore_index=255,
):
    """Eq. 8-14, the centres held constant."""
    mu = mu.detach()
    taking_part = _classes(counts, classes)
    margin = threshold / max(1, len(_classes(counts, threshold_classes)) - 1)
    divisor = math.sqrt(features.shape[1]) if scale else 1.0
    sums = []
    for x, label in zip(features, labels.tolist()):
        if label == ignore_index:
            if formulation == 'paper':
                continue
            label = None
        scores = {j: ((mu[j] if j == label else x) * mu[j]).sum() / divisor for j in taking_part}
        sums.append(_excess(scores, label, margin))
    return _mean(sums, formulation) if sums else features.sum() * 0
