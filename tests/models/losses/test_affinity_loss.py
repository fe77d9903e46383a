"""AffinityLoss against the equations of CPNet, pair by pair."""

import math

import pytest
import torch
from mmseg.registry import MODELS

K, SIDE = 3, 3


def naive(logits, labels, unary_weight=1.0, global_weight=1.0, ignore_index=255):
    """CPNet, eq. 1 to 6, with loops; ignored pixels take part in no pair."""
    pairs, unary, rows, overall = 0, 0.0, 0, 0.0
    for image, y in zip(logits.double(), labels.tolist()):
        known = [i for i, label in enumerate(y) if label != ignore_index]
        for j in known:
            p = {i: 1 / (1 + math.exp(-image[j, i].item())) for i in known}
            a = {i: float(y[i] == y[j]) for i in known}
            for i in known:
                unary -= a[i] * math.log(p[i]) + (1 - a[i]) * math.log(1 - p[i])
            pairs += len(known)
            hits = sum(a[i] * p[i] for i in known)
            overall -= math.log(hits / sum(p.values())) + math.log(hits / sum(a.values()))
            others = sum(1 - a[i] for i in known)
            if others:
                overall -= math.log(sum((1 - a[i]) * (1 - p[i]) for i in known) / others)
            rows += 1
    return unary_weight * unary / max(pairs, 1) + global_weight * overall / max(rows, 1)


def problem(ignored=0.2, classes=K, images=2):
    g = torch.Generator().manual_seed(0)
    num = SIDE * SIDE
    labels = torch.randint(0, classes, (images, num), generator=g)
    labels[torch.rand(labels.shape, generator=g) < ignored] = 255
    logits = 3 * torch.randn(images, num, num, generator=g, dtype=torch.float64)
    return logits.requires_grad_(), labels


@pytest.mark.parametrize('weights', [(1.0, 1.0), (0.0, 2.0), (0.5, 0.0)])
@pytest.mark.parametrize('ignored', [0.0, 0.4])
@pytest.mark.parametrize('classes', [1, K])
def test_equals_the_equations(weights, ignored, classes):
    logits, labels = problem(ignored, classes)
    loss = MODELS.build(
        dict(
            type='AffinityLoss',
            unary_weight=weights[0],
            global_weight=weights[1],
            loss_weight=0.7,
        )
    )
    expected = 0.7 * naive(logits, labels, *weights)
    assert loss(logits, labels).item() == pytest.approx(expected, rel=1e-12)
    assert loss(logits.float(), labels).item() == pytest.approx(expected, rel=1e-5)


def test_gradcheck():
    logits, labels = problem()
    loss = MODELS.build(dict(type='AffinityLoss'))
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), logits)


def test_sums_of_probabilities_are_held_at_1e_12():
    """A sure mistake everywhere: no hit and nothing rejected, each sum in its place."""
    labels = torch.tensor([[0, 0, 1, 1, 1]])
    alike = labels[:, :, None] == labels[:, None, :]
    loss = MODELS.build(dict(type='AffinityLoss', unary_weight=0.0))
    logits = torch.where(alike, -200.0, 200.0).double()
    expected = 0
    for own, others in ((2, 3), (2, 3), (3, 2), (3, 2), (3, 2)):
        expected -= math.log(1e-12 / others) + math.log(1e-12 / own) + math.log(1e-12 / others)
    assert loss(logits, labels).item() == pytest.approx(expected / 5, rel=1e-9)


def test_a_perfect_prior_costs_nothing():
    _, labels = problem()
    alike = labels[:, :, None] == labels[:, None, :]
    loss = MODELS.build(dict(type='AffinityLoss'))
    assert loss(torch.where(alike, 60.0, -60.0), labels).item() == pytest.approx(0, abs=1e-6)


def test_sizes_that_do_not_match_are_refused():
    logits, labels = problem()
    with pytest.raises(ValueError, match=r'got \[2, 9, 9\] and \[2, 8\]'):
        MODELS.build(dict(type='AffinityLoss'))(logits, labels[:, :8])
