"""AffinityLoss against the equations, pair by pair in float64."""

import math

import pytest
import torch

from mmseg_cmdl.models.losses import AffinityLoss

K = 4


def case(seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 7, 7, generator=g, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, K, (2, 7), generator=g)
    labels[0, 2] = labels[1, 5] = 255
    labels[1, :2] = 9  # out of range: no class either
    return logits, labels


def by_loops(logits, labels):
    """(L_u, L_g)."""
    entropies, terms = [], []
    for b in range(len(labels)):
        known = [i for i in range(labels.shape[1]) if labels[b, i] < K]
        for j in known:
            hits = claimed = own = refused = others = 0.0
            for i in known:
                p = 1 / (1 + math.exp(-logits[b, j, i].item()))
                a = int(labels[b, i] == labels[b, j])
                entropies.append(-a * math.log(p) - (1 - a) * math.log(1 - p))
                hits, claimed, own = hits + a * p, claimed + p, own + a
                refused, others = refused + (1 - a) * (1 - p), others + 1 - a
            term = math.log(hits / claimed) + math.log(hits / own)
            terms.append(term + (math.log(refused / others) if others else 0))
    return sum(entropies) / len(entropies), -sum(terms) / len(terms)


def test_equals_loops():
    logits, labels = case()
    unary, total = by_loops(logits, labels)
    for weights, expected in (
        ((1, 0), unary),
        ((0, 1), total),
        ((2, 3), 2 * unary + 3 * total),
    ):
        loss = AffinityLoss(*weights, loss_weight=0.5)(logits, labels, K)
        assert loss.item() == pytest.approx(0.5 * expected)


def test_gradient():
    logits, labels = case()
    assert torch.autograd.gradcheck(lambda x: AffinityLoss()(x, labels, K), logits)
    AffinityLoss()(logits, labels, K).backward()
    known = labels < K
    pairs = known[:, :, None] & known[:, None]
    assert (logits.grad[~pairs] == 0).all()
    assert (logits.grad[pairs] != 0).all()


def test_a_perfect_prior_costs_nothing_and_its_opposite_much():
    _, labels = case()
    same = (labels[:, :, None] == labels[:, None]).double()
    assert AffinityLoss()(80 * same - 40, labels, K) < 1e-6
    assert AffinityLoss()(40 - 80 * same, labels, K) > 40


def test_nothing_labelled_is_zero_with_a_graph():
    logits, labels = case()
    loss = AffinityLoss()(logits, torch.full_like(labels, 255), K)
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


def test_one_class_alone_has_no_specificity():
    logits, labels = case()
    labels[:] = 1
    assert AffinityLoss(0, 1)(logits, labels, K).item() == pytest.approx(
        by_loops(logits, labels)[1]
    )


def test_a_name_without_loss_is_refused():
    with pytest.raises(ValueError, match='must contain "loss"'):
        AffinityLoss(loss_name='affinity')
