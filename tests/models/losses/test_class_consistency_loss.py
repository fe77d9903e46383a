import math

import pytest
import torch

from mmseg_cmdl.models.losses import ClassGlobalConsistencyLoss, ClassLocalConsistencyLoss
from tests.reference import golden, mdrl

BOTH = [ClassLocalConsistencyLoss, ClassGlobalConsistencyLoss]
FORMULATIONS = ['paper', 'released']


def _build(cls, formulation, num_classes=None, **options):
    if cls is ClassLocalConsistencyLoss and formulation == 'released' and num_classes:
        loss = cls(formulation=formulation, num_classes=num_classes, **options).double()
        g = torch.Generator().manual_seed(1)
        with torch.no_grad():
            loss.norm.weight.copy_(torch.rand(num_classes, generator=g) + 0.5)
            loss.norm.bias.copy_(torch.randn(num_classes, generator=g) * 0.3)
        return loss
    return cls(formulation=formulation, **options)


def _problem(
    seed,
    batch=2,
    size=(4, 5),
    num_classes=5,
    num=3,
    label_size=(9, 12),
    ignored=0.2,
    absent=(),
    ignore_index=255,
):
    g = torch.Generator().manual_seed(seed)
    similarity = torch.rand(batch, *size, num_classes, num, generator=g, dtype=torch.float64)
    present = torch.tensor([c for c in range(num_classes) if c not in absent])
    labels = present[torch.randint(len(present), (batch, *label_size), generator=g)]
    labels[torch.rand(batch, *label_size, generator=g) < ignored] = ignore_index
    return similarity * 2 - 1, labels


# ---- recorded numbers ----


def _released_local(data):
    """The released local loss with the recorded weights of its LayerNorm."""
    loss = ClassLocalConsistencyLoss(formulation='released', num_classes=data['bank'].shape[0])
    assert loss.norm.eps == data['ln_eps']
    loss = loss.to(data['bank'].dtype)
    with torch.no_grad():
        loss.norm.weight.copy_(data['ln_weight'])
        loss.norm.bias.copy_(data['ln_bias'])
    return loss


GOLDEN = [
    ('paper_clcl', lambda d: ClassLocalConsistencyLoss(formulation='paper')),
    ('paper_cgcl', lambda d: ClassGlobalConsistencyLoss(formulation='paper')),
    ('paper_cgcl_tau1', lambda d: ClassGlobalConsistencyLoss(1.0, formulation='paper')),
    ('paper_cgcl_tau0p1', lambda d: ClassGlobalConsistencyLoss(0.1, formulation='paper')),
    ('released_loss_ce', _released_local),
    ('released_loss_ppc', lambda d: ClassGlobalConsistencyLoss(formulation='released')),
]


@pytest.mark.parametrize('name', golden.names('mdrl_losses_*'))
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize(('key', 'build'), GOLDEN, ids=[key for key, _ in GOLDEN])
def test_golden(name, dtype, key, build):
    data = golden.load(name, dtype)
    loss = build(data).to(dtype)
    leaves = {'': data['embeddings'].requires_grad_()}
    if key == 'released_loss_ce':
        leaves.update(_ln_weight=loss.norm.weight, _ln_bias=loss.norm.bias)
    leaves['_bank'] = data['bank'].requires_grad_()
    similarity = torch.einsum('pz,knz->pkn', data['embeddings'], data['bank'])
    similarity = similarity.unflatten(0, data['batch_height_width'].tolist())
    value = loss(similarity, data['labels'], ignore_index=data['ignore_index'])
    assert (value.shape, value.dtype) == ((), dtype)
    within = dict(rel=0, abs=1e-10) if dtype == torch.float64 else dict(rel=1e-5)
    assert value.item() == pytest.approx(data[key], **within)
    recorded = {suffix: data.get(f'{key}_grad{suffix}') for suffix in leaves}
    recorded = {suffix: grad for suffix, grad in recorded.items() if grad is not None}
    assert bool(recorded) == (key != 'paper_cgcl_tau1')
    if recorded:
        grads = torch.autograd.grad(value, [leaves[suffix] for suffix in recorded])
        for grad, expected in zip(grads, recorded.values()):
            golden.assert_close(grad, expected, 1e-10, 1e-4)


# ---- numbers worked out by hand ----


def test_by_hand_several_distributions():
    """K = N = 2, tau 1: cosines .8 and .2 to the own class, .5 and -.4 to the other."""
    similarity = torch.tensor([[0.8, 0.2], [0.5, -0.4]], dtype=torch.float64).view(1, 1, 1, 2, 2)
    labels = torch.zeros(1, 1, 1, dtype=torch.long)
    e = math.exp
    other = e(0.5) + e(-0.4)
    assert ClassLocalConsistencyLoss(formulation='paper')(
        similarity, labels
    ).item() == pytest.approx(math.log1p(e(0.5 - 0.8)), rel=1e-12)
    assert ClassGlobalConsistencyLoss(1.0, formulation='paper')(
        similarity, labels
    ).item() == pytest.approx(-math.log((e(0.8) + e(0.2)) / (e(0.8) + e(0.2) + other)), rel=1e-12)
    assert ClassGlobalConsistencyLoss(formulation='released')(
        similarity, labels
    ).item() == pytest.approx(
        -(math.log(e(0.8) / (e(0.8) + other)) + math.log(e(0.2) / (e(0.2) + other))) / 2, rel=1e-12
    )


def test_released_contrast_counts_classes_evenly():
    """Nine pixels of class 0 and one of class 1: each class has half the weight."""
    similarity = torch.zeros(1, 1, 10, 2, 1).double()
    similarity[:, :, :, 0] = torch.linspace(-0.5, 0.5, 10).double()[:, None]
    labels = torch.zeros(1, 1, 10, dtype=torch.long)
    labels[0, 0, 9] = 1
    loss = ClassGlobalConsistencyLoss(formulation='released')
    one = [math.log1p(math.exp(-s)) for s in torch.linspace(-0.5, 0.5, 10).tolist()[:9]]
    expected = (sum(one) / 9 + math.log1p(math.exp(0.5))) / 2
    assert loss(similarity, labels).item() == pytest.approx(expected, rel=1e-9)


# ---- against the naive forms ----

SHAPES = {
    'plain': dict(),
    'n1': dict(num=1),
    'two_classes': dict(num_classes=2, num=2),
    'one_image_same_size': dict(batch=1, size=(5, 7), label_size=(5, 7)),
    'labels_not_a_multiple': dict(size=(3, 7), label_size=(11, 13)),
    'labels_smaller': dict(size=(6, 6), label_size=(3, 4)),
    'one_row': dict(size=(1, 6), label_size=(1, 13)),
    'one_pixel': dict(batch=1, size=(1, 1), label_size=(2, 2), ignored=0.0),
    'absent': dict(absent=(0, 3)),
    'one_pixel_classes': dict(batch=1, size=(2, 2), num_classes=9, label_size=(2, 2), ignored=0.0),
    'mostly_ignored': dict(ignored=0.9),
    'ignore_index_0': dict(ignore_index=0, absent=(0,)),
    'ignore_index_minus_1': dict(ignore_index=-1),
}


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('formulation', FORMULATIONS)
@pytest.mark.parametrize('cls', BOTH)
def test_equals_the_naive_form(cls, formulation, shape):
    options = SHAPES[shape]
    similarity, labels = _problem(3, **options)
    similarity.requires_grad_()
    ignore_index = options.get('ignore_index', 255)
    loss = _build(cls, formulation, similarity.shape[3])
    value = loss(similarity, labels, ignore_index=ignore_index)
    expected = mdrl.naive(loss)(similarity, labels, ignore_index=ignore_index)
    leaves = [similarity, *loss.parameters()]
    assert value.item() == pytest.approx(expected.item(), rel=1e-10, abs=1e-12)
    for got, want in zip(torch.autograd.grad(value, leaves), torch.autograd.grad(expected, leaves)):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-11)


def test_released_without_num_classes_has_no_weights():
    similarity, labels = _problem(4)
    loss = ClassLocalConsistencyLoss(formulation='released')
    assert not list(loss.parameters())
    assert loss(similarity, labels).item() == pytest.approx(
        mdrl.local_released(similarity, labels).item(), rel=1e-12
    )


@pytest.mark.parametrize('formulation', FORMULATIONS)
@pytest.mark.parametrize('cls', BOTH)
def test_gradcheck_of_both_derivatives(cls, formulation):
    similarity, labels = _problem(5, batch=1, size=(2, 3), num_classes=3, num=2, label_size=(4, 5))
    similarity.requires_grad_()
    loss = _build(cls, formulation, 3)
    parameters = list(loss.parameters())
    inputs = (similarity, *parameters)
    assert torch.autograd.gradcheck(lambda s, *_: loss(s, labels), inputs)
    assert torch.autograd.gradgradcheck(lambda s, *_: loss(s, labels), inputs)


# ---- any temperature ----


@pytest.mark.parametrize('temperature', [0.02, 1e-3, 1e-6])
def test_any_temperature_in_single_precision(temperature):
    """exp(cosine / temperature) leaves float32 below 0.012; the loss is taken in log space."""
    similarity, labels = _problem(19)
    exact = similarity.clone().requires_grad_()
    terms = []
    for scores, label in mdrl._pixels(exact / temperature, labels, 255):
        own, every = scores[label], scores.flatten()
        log_sums = [x.max() + (x - x.max()).exp().sum().log() for x in (own, every)]
        terms.append(log_sums[1] - log_sums[0])
    expected = sum(terms) / len(terms)
    single = similarity.float().requires_grad_()
    value = ClassGlobalConsistencyLoss(temperature, formulation='paper')(single, labels)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    grads = [torch.autograd.grad(v, x)[0] for v, x in ((value, single), (expected, exact))]
    atol = 1e-4 * grads[1].abs().max().item()
    torch.testing.assert_close(grads[0].double(), grads[1], rtol=0, atol=atol)
