"""What every loss keeps to: pixels that don't count, large values, half precision, its weight."""

import pytest
import torch
import torch.nn.functional as F
from mmseg.registry import MODELS

from mmseg_cmdl.models.losses import class_centers
from tests.reference import mdrl

K, N, SIZE = 5, 3, (6, 6)
FORMULATED = {
    'local': dict(type='ClassLocalConsistencyLoss', num_classes=K),
    'global': dict(type='ClassGlobalConsistencyLoss'),
    'intra_c2p': dict(type='IntraClassCenterToPixelLoss'),
    # thresholds that no product stays under, so that all pixels count
    'inter_c2c': dict(type='InterClassCenterToCenterLoss', threshold=0.01),
    'inter_c2p': dict(type='InterClassCenterToPixelLoss', threshold=0.01),
}
LOSSES = {
    **{
        f'{name} {formulation}': dict(cfg, formulation=formulation)
        for name, cfg in FORMULATED.items()
        for formulation in ('paper', 'released')
    },
    'ppc': dict(type='PixelPrototypeContrastLoss'),
    'ppd': dict(type='PixelPrototypeDistanceLoss'),
    'affinity': dict(type='AffinityLoss'),
}
# ignored pixels count in these, as in the authors' code
COUNT_IGNORED = ('intra_c2p released', 'inter_c2p released')
every_loss = pytest.mark.parametrize('name', LOSSES)


def build(name, dtype=torch.float64, **options):
    loss = MODELS.build({**LOSSES[name], **options}).to(dtype)
    for p in loss.parameters():  # of the LayerNorm: not as it starts
        torch.nn.init.uniform_(p, 0.5, 1.5, generator=torch.Generator().manual_seed(1))
    return loss


def label_maps():
    """[3, 12, 12]: more than half of it ignored, one image whole."""
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(K, (3, 12, 12), generator=g)
    labels[:, :, 5:] = 255
    labels[2] = 255
    return labels


def compared(name, scale=1.0, dtype=torch.float64):
    """What a loss compares: features [P, C], logits of pairs [B, P, P], or [B, h, w, K, N]."""
    g = torch.Generator().manual_seed(2)
    draw = dict(generator=g, dtype=torch.float64)
    if name == 'affinity':
        x = 3 * torch.randn(3, 36, 36, **draw)
    elif 'c2' in name:  # around a vector of their class, so that products exceed the thresholds
        classes = mdrl.nearest_labels(label_maps(), SIZE).flatten() % K
        x = torch.randn(K, 6, **draw)[classes] + torch.randn(3 * 36, 6, **draw)
    else:
        x = 2 * torch.rand(3, *SIZE, K, N, **draw) - 1
    return (scale * x).to(dtype).requires_grad_()


def value_of(name, loss, x, labels):
    small = mdrl.nearest_labels(labels, SIZE)
    if name == 'affinity':
        return loss(x, small.flatten(1))
    if name.startswith('pp'):
        return loss(x, torch.where(small == 255, -1, small.long() * N + 1))
    if 'c2' in name:
        centers, counts = class_centers(x, small.flatten(), K)
        return loss(x, small.flatten(), centers, counts)
    return loss(x, labels)


def counted(name):
    """Which pixels, or pairs of them, a loss must see."""
    labels = label_maps()
    known = mdrl.nearest_labels(labels, SIZE) != 255
    if name == 'affinity':
        known = known.flatten(1)
        return known[:, :, None] & known[:, None]
    if name != 'local released':
        return known.flatten() if 'c2' in name else known
    # at label size: those that a labelled pixel is interpolated from
    probe = torch.zeros(3, 1, *SIZE, dtype=torch.float64, requires_grad=True)
    full = F.interpolate(probe, labels.shape[1:], mode='bilinear', align_corners=True)
    (grad,) = torch.autograd.grad((full[:, 0] * (labels != 255)).sum(), probe)
    return grad[:, 0] > 0


def test_every_registered_loss_is_here():
    types = {cfg['type'] for cfg in LOSSES.values()}
    ours = {
        name for name, cls in MODELS.module_dict.items()
        if cls.__module__.startswith('mmseg_cmdl.models.losses')
    }  # fmt: skip
    assert types == ours


@every_loss
def test_gradient_at_ignored_pixels_is_exactly_zero_and_at_no_other(name):
    x, mask = compared(name), counted(name)
    (grad,) = torch.autograd.grad(value_of(name, build(name), x, label_maps()), x)
    reached = grad.reshape(*mask.shape, -1).abs().amax(-1) > 0
    assert 0 < mask.sum() < mask.numel() / 2
    if name == 'inter_c2p released':
        assert reached[~mask].any()  # as its docstring says
    else:
        assert torch.equal(reached, mask)


@pytest.mark.parametrize('name', [n for n in LOSSES if n != 'inter_c2p released'])
def test_ignored_pixels_may_hold_anything(name):
    """What they hold reaches neither the value nor another pixel's gradient."""
    # a LayerNorm over the classes needs a finite variance
    dtype = torch.float64 if name == 'local released' else torch.float32
    x = compared(name, dtype=dtype)
    wild = x.detach().clone()
    wild[~counted(name)] = 1e30
    results = []
    for given in (x, wild.requires_grad_()):
        value = value_of(name, build(name, dtype), given, label_maps())
        results.append((value, *torch.autograd.grad(value, given)))
    for plain, other in zip(*results):
        assert torch.equal(plain, other)


@every_loss
@pytest.mark.parametrize('classes', ['all', 'present'])
def test_all_ignored_has_a_graph_and_no_gradient(name, classes):
    options = dict(classes=classes) if name.startswith('inter') else {}
    x, loss = compared(name), build(name, **options)
    value = value_of(name, loss, x, torch.full_like(label_maps(), 255))
    assert value.isfinite()
    assert value.item() == 0 or name in COUNT_IGNORED
    for grad in torch.autograd.grad(value, [x, *loss.parameters()]):
        assert torch.equal(grad, torch.zeros_like(grad))


@every_loss
def test_no_images_are_no_loss(name):
    """A rank whose share of a batch is empty takes part in the sums of the others."""
    x, loss = compared(name)[:0].detach().requires_grad_(), build(name)
    value = value_of(name, loss, x, label_maps()[:0])
    assert value.item() == (pytest.approx(1e-5) if name == 'intra_c2p released' else 0)
    (grad,) = torch.autograd.grad(value, x)
    assert grad.shape == x.shape


@every_loss
@pytest.mark.parametrize('scale', [1e2, 1e4, 1e6])
def test_large_values_stay_finite(name, scale):
    x = compared(name, scale, torch.float32)
    value = value_of(name, build(name, torch.float32), x, label_maps())
    assert value.isfinite()
    assert torch.autograd.grad(value, x)[0].isfinite().all()


@every_loss
def test_half_precision_is_summed_in_float32_under_autocast(name):
    x, loss = compared(name, dtype=torch.bfloat16), build(name, torch.float32)
    exact = value_of(name, loss, x.float(), label_maps())
    with torch.autocast('cpu', torch.bfloat16):
        half = value_of(name, loss, x, label_maps())
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact.item(), rel=1e-5)
    assert torch.autograd.grad(half, x)[0].dtype == torch.bfloat16


@every_loss
def test_integer_label_types(name):
    loss, x, labels = build(name), compared(name), label_maps()
    for dtype in (torch.uint8, torch.int32):
        assert torch.equal(
            value_of(name, loss, x, labels.to(dtype)), value_of(name, loss, x, labels)
        )


@every_loss
def test_loss_weight_scales_value_and_gradient(name):
    x = compared(name)
    one, third = (value_of(name, build(name, loss_weight=w), x, label_maps()) for w in (1.0, 0.3))
    assert third.item() == pytest.approx(0.3 * one.item(), rel=1e-12)
    one, third = (torch.autograd.grad(v, x, retain_graph=True)[0] for v in (one, third))
    torch.testing.assert_close(third, 0.3 * one)
