"""resized_cross_entropy against resizing first, and against sums written out."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmseg_cmdl.models.losses import ClassLocalConsistencyLoss, resized_cross_entropy
from tests.reference.dispatch import LargestTensor


def problem(shape, label_size, seed=0, ignored=0.2, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(shape, generator=g, dtype=dtype)
    classes = torch.randint(0, shape[1], (shape[0], *label_size), generator=g)
    classes[torch.rand(classes.shape, generator=g) < ignored] = shape[1]
    return scores.requires_grad_(), classes


def resized_first(scores, classes, align_corners):
    full = F.interpolate(scores, classes.shape[1:], mode='bilinear', align_corners=align_corners)
    return F.cross_entropy(full, classes, ignore_index=scores.shape[1], reduction='sum')


SHAPES = [
    ((2, 5, 4, 6), (16, 24)),
    ((1, 3, 5, 7), (13, 9)),  # sizes that don't divide
    ((2, 4, 6, 5), (3, 4)),  # labels smaller than features
    ((1, 2, 1, 1), (4, 3)),
    ((1, 3, 4, 4), (1, 1)),
    ((2, 1, 3, 3), (6, 6)),  # one class: no loss
]


@pytest.mark.parametrize('align_corners', [True, False])
@pytest.mark.parametrize('band_rows', [None, 1, 3, 100])
@pytest.mark.parametrize(('shape', 'label_size'), SHAPES)
def test_equals_resizing_first(shape, label_size, band_rows, align_corners):
    scores, classes = problem(shape, label_size)
    value = resized_cross_entropy(scores, classes, align_corners, band_rows)
    expected = resized_first(scores, classes, align_corners)
    assert value.shape == ()
    assert value.item() == pytest.approx(expected.item(), rel=1e-12, abs=1e-12)
    (grad,) = torch.autograd.grad(0.7 * value, scores)
    (expected_grad,) = torch.autograd.grad(0.7 * expected, scores)
    torch.testing.assert_close(grad, expected_grad, rtol=0, atol=1e-12)


def test_by_hand():
    """Two cells resized to three pixels: the second class leads by 2, 1 and 0."""
    scores = torch.tensor([[0.0, 0.0], [2.0, 0.0]], dtype=torch.float64).view(1, 2, 1, 2)
    value = resized_cross_entropy(scores, torch.tensor([[[0, 1, 2]]]), align_corners=True)
    expected = math.log1p(math.exp(2)) + math.log1p(math.exp(-1))  # the third pixel has no class
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_single_and_half_precision():
    scores, classes = problem((2, 19, 8, 8), (64, 64), dtype=torch.float32)
    value = resized_cross_entropy(scores, classes, align_corners=True)
    assert value.dtype == torch.float32
    exact = scores.detach().double().requires_grad_()
    expected = resized_first(exact, classes, True)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    (grad,), (expected_grad,) = (
        torch.autograd.grad(v, s) for v, s in ((value, scores), (expected, exact))
    )
    torch.testing.assert_close(grad.double(), expected_grad, rtol=0, atol=1e-4)

    half = scores.detach().bfloat16()
    value = resized_cross_entropy(half, classes, align_corners=True)
    assert value.dtype == torch.float32
    exact = resized_first(half.double(), classes, True)
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)
    with torch.autocast('cpu', dtype=torch.bfloat16):  # products stay in float32
        inside = resized_cross_entropy(half, classes, align_corners=True)
    assert inside.item() == value.item()


def test_large_scores_stay_finite():
    scores, classes = problem((1, 4, 3, 3), (9, 9), dtype=torch.float32)
    with torch.no_grad():
        scores *= 1e4
    value = resized_cross_entropy(scores, classes)
    (grad,) = torch.autograd.grad(value, scores)
    assert value.isfinite()
    assert grad.isfinite().all()
    assert value.item() == pytest.approx(resized_first(scores, classes, False).item(), rel=1e-5)


def test_no_labelled_pixel():
    scores, classes = problem((2, 3, 4, 4), (8, 8), ignored=1.1)
    value = resized_cross_entropy(scores, classes)
    assert value.item() == 0
    (grad,) = torch.autograd.grad(value, scores)
    assert not grad.any()


def test_gradcheck():
    scores, classes = problem((2, 3, 3, 2), (7, 5))
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda s: resized_cross_entropy(s, classes, True, band_rows=2), scores)


def test_holds_no_scores_at_label_size():
    """Of the loss in its released form; resizing first shows that the probe sees such maps."""
    B, K, size, full = 2, 40, 16, 512
    g = torch.Generator().manual_seed(0)
    similarity = torch.randn(B, size, size, K, 1, generator=g).requires_grad_()
    labels = torch.randint(0, K, (B, full, full), generator=g)
    loss = ClassLocalConsistencyLoss(formulation='released')
    whole = B * K * full * full * similarity.element_size()
    with LargestTensor() as mode:
        loss(similarity, labels).backward()
    assert mode.largest < whole / 8
    with LargestTensor() as mode:
        resized_first(similarity[..., 0].permute(0, 3, 1, 2), labels, True).backward()
    assert mode.largest >= whole
