import pytest
import torch

from mmseg_cmdl.models.losses import (
    InterClassCenterToCenterLoss,
    InterClassCenterToPixelLoss,
    IntraClassCenterToPixelLoss,
    class_centers,
)
from tests.reference import car, golden
from tests.reference.dispatch import CountOps

INTRA, C2C, C2P = (
    IntraClassCenterToPixelLoss,
    InterClassCenterToCenterLoss,
    InterClassCenterToPixelLoss,
)
ALL = [INTRA, C2C, C2P]
FORMULATIONS = ['paper', 'released']

every_loss = pytest.mark.parametrize('cls', ALL)
every_formulation = pytest.mark.parametrize('formulation', FORMULATIONS)


def values(losses, features, labels, num_classes, ignore_index=255):
    """Losses by name."""
    centers, counts = class_centers(features, labels, num_classes, ignore_index)
    return {
        loss.loss_name: loss(features, labels, centers, counts, ignore_index=ignore_index)
        for loss in losses
    }


def one(loss, features, labels, num_classes, ignore_index=255):
    (value,) = values([loss], features, labels, num_classes, ignore_index).values()
    return value


def naive(loss, features, labels, num_classes, ignore_index=255):
    mu, counts = car.centers(features, labels, num_classes, ignore_index)
    if isinstance(loss, INTRA):
        return car.intra_c2p(features, labels, mu, loss.formulation, ignore_index)
    options = dict(
        threshold=loss.threshold,
        formulation=loss.formulation,
        classes=loss.classes,
        threshold_classes=loss.threshold_classes,
    )
    if isinstance(loss, C2C):
        return car.inter_c2c(mu, counts, both_sides=loss.both_sides, **options)
    return car.inter_c2p(
        features, labels, mu, counts, scale=loss.scale, ignore_index=ignore_index, **options
    )


def problem(
    seed,
    pixels=23,
    channels=6,
    num_classes=5,
    ignored=0.2,
    absent=(),
    ignore_index=255,
    scale=1.0,
    dtype=torch.float64,
):
    """Features around a vector of their class, so that some products exceed the thresholds."""
    g = torch.Generator().manual_seed(seed)
    present = torch.tensor([c for c in range(num_classes) if c not in absent])
    labels = present[torch.randint(len(present), (pixels,), generator=g)]
    around = torch.randn(num_classes, channels, generator=g, dtype=torch.float64)
    features = around[labels] + torch.randn(pixels, channels, generator=g, dtype=torch.float64)
    labels[torch.rand(pixels, generator=g) < ignored] = ignore_index
    return (features * scale).to(dtype).requires_grad_(), labels


# ---- recorded numbers ----

GOLDEN = {
    'paper_intra_c2p': lambda e0, e1: INTRA(),
    'paper_inter_c2c': lambda e0, e1: C2C(e0),
    'paper_inter_c2c_both_sides': lambda e0, e1: C2C(e0, both_sides=True),
    'paper_inter_c2c_present': lambda e0, e1: C2C(e0, classes='present'),
    'paper_inter_c2c_present_threshold': lambda e0, e1: C2C(
        e0, classes='present', threshold_classes='present'
    ),
    'paper_inter_c2p': lambda e0, e1: C2P(e1),
    'paper_inter_c2p_unscaled': lambda e0, e1: C2P(e1, scale=False),
    'paper_inter_c2p_present': lambda e0, e1: C2P(e1, classes='present'),
    'paper_inter_c2p_present_threshold': lambda e0, e1: C2P(
        e1, classes='present', threshold_classes='present'
    ),
    'released_intra_c2p': lambda e0, e1: INTRA('released'),
    'released_inter_c2c': lambda e0, e1: C2C(e0, 'released'),
    'released_inter_c2p': lambda e0, e1: C2P(e1, 'released'),
}


@pytest.mark.parametrize('key', GOLDEN)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('name', golden.names('car_*'))
def test_golden(name, dtype, key):
    data = golden.load(name, dtype)
    loss = GOLDEN[key](data['inter_c2c_threshold'], data['inter_c2p_threshold'])
    x = data['features'].requires_grad_()
    value = one(
        loss,
        x.flatten(0, 2),
        data['labels'].flatten(),
        data['num_classes'],
        data['ignore_index'],
    )
    assert (value.shape, value.dtype) == ((), dtype)
    (grad,) = torch.autograd.grad(value, x)
    expected = data[f'{key}_grad']
    if dtype == torch.float64:
        assert value.item() == pytest.approx(data[key], rel=0, abs=1e-10)
        torch.testing.assert_close(grad, expected, rtol=0, atol=1e-10)
        return
    assert value.item() == pytest.approx(data[key], rel=1e-4, abs=1e-6)
    # large centres and a tiny spread: what is left of the difference has few digits
    share = 1e-3 if (name, key) == ('car_c_far_apart', 'paper_intra_c2p') else 1e-4
    atol = share * expected.abs().max().item() + 1e-9
    torch.testing.assert_close(grad, expected, rtol=0, atol=atol)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('name', golden.names('car_*'))
def test_golden_centers(name, dtype):
    data = golden.load(name, dtype)
    centers, counts = class_centers(
        data['features'].flatten(0, 2), data['labels'].flatten(), data['num_classes']
    )
    golden.assert_close(centers, data['released_class_centers'][0], 1e-10)
    assert torch.equal(counts, data['class_counts_per_image'].sum(0)[:, 0])
    per_image = [
        class_centers(x.flatten(0, 1), y.flatten(), data['num_classes'])[0]
        for x, y in zip(data['features'], data['labels'])
    ]
    golden.assert_close(torch.stack(per_image), data['released_per_image_class_centers'], 1e-10)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('num_classes', [4, 40000])  # keys of 16 and of 32 bits
def test_sums_with_and_without_gradient(num_classes, dtype):
    """Two ways to the same sums, without NaN from ignored pixels, 0 for absent classes."""
    g = torch.Generator().manual_seed(0)
    features = torch.randn(300, 7, generator=g, dtype=dtype)
    labels = torch.randint(0, 3, (300,), generator=g)
    labels[::5], features[::10] = 255 if num_classes == 4 else -1, torch.nan
    plain = class_centers(features, labels, num_classes)
    differentiated = class_centers(features.clone().requires_grad_(), labels, num_classes)
    assert differentiated[0].requires_grad
    for one, other in zip(plain, differentiated):
        assert torch.equal(one, other)
    for c in range(4):
        own = features[labels == c].double()
        assert plain[1][c] == len(own)
        expected = own.sum(0) / max(len(own), 1)
        torch.testing.assert_close(plain[0][c].double(), expected, rtol=0, atol=1e-6)


# ---- numbers worked out by hand ----


def test_by_hand():
    """Two classes of two pixels on a line: centres 1 and -1 in both channels."""
    features = torch.tensor([[0.0, 1.0], [2.0, 1.0], [-1.0, -1.0], [-1.0, -1.0]]).double()
    labels = torch.tensor([0, 0, 1, 1])
    centers, counts = class_centers(features, labels, 2)
    assert centers.tolist() == [[1, 1], [-1, -1]]
    assert counts.tolist() == [2, 2]
    # the distances are 1 in two of eight numbers
    assert INTRA()(features, labels, centers, counts).item() == pytest.approx(2 / 8)
    assert INTRA('released')(features, labels, centers, counts).item() == pytest.approx(
        (2 / 8) ** 2
    )
    # off the diagonal e^(-2/sqrt 2) against e^(2/sqrt 2), far less than 0.5; no threshold, no limit
    assert C2C()(None, None, centers, counts).item() == 0
    other = 1 / (1 + torch.tensor(4 / 2**0.5).double().exp().item())
    assert C2C(0)(None, None, centers, counts).item() == pytest.approx(other**2)
    # pixel (0, 1) has -1 with the other centre and 2 for its own, pixel (2, 1) has -3 and 2
    sums = [1 / (1 + torch.tensor(n / 2**0.5).double().exp().item()) for n in (3, 5, 4, 4)]
    assert C2P(0)(features, labels, centers, counts).item() == pytest.approx(
        sum(d * d for d in sums) / 4
    )
    assert C2P(0, 'released')(features, labels, centers, counts).item() == pytest.approx(
        (sum(sums) / 4) ** 2
    )


# ---- against the naive forms ----

SHAPES = {
    'plain': dict(),
    'absent': dict(absent=(0, 3)),
    'two_classes': dict(num_classes=2),
    'one_class_present': dict(absent=(0, 1, 3, 4)),
    'one_pixel': dict(pixels=1, ignored=0.0),
    'one_channel': dict(channels=1, scale=2.0),
    'nothing_ignored': dict(ignored=0.0),
    'mostly_ignored': dict(ignored=0.9),
    'ignore_index_0': dict(ignore_index=0, absent=(0,)),
    'ignore_index_minus_1': dict(ignore_index=-1),
    'large': dict(scale=20.0),
    'small': dict(scale=1e-4),
}
OPTIONS = {
    INTRA: [{}],
    C2C: [
        {},
        dict(threshold=0.0),
        dict(threshold=0.9),
        dict(both_sides=True),
        dict(classes='present'),
        dict(classes='present', threshold_classes='present'),
        dict(threshold_classes='present'),
    ],
    C2P: [
        {},
        dict(threshold=0.0),
        dict(threshold=0.9),
        dict(scale=False),
        dict(classes='present'),
        dict(classes='present', threshold_classes='present'),
        dict(threshold_classes='present'),
    ],
}
CASES = [(cls, options) for cls in ALL for options in OPTIONS[cls]]


@every_formulation
@pytest.mark.parametrize(
    ('cls', 'options'), CASES, ids=[f'{cls.__name__}-{options}' for cls, options in CASES]
)
@pytest.mark.parametrize('shape', SHAPES)
def test_equals_the_naive_form(cls, options, formulation, shape):
    features, labels = problem(3, **SHAPES[shape])
    num_classes = SHAPES[shape].get('num_classes', 5)
    ignore_index = SHAPES[shape].get('ignore_index', 255)
    loss = cls(formulation=formulation, loss_weight=0.7, **options)
    expected = 0.7 * naive(loss, features, labels, num_classes, ignore_index) + 0 * features.sum()
    (want,) = torch.autograd.grad(expected, features)
    value = one(loss, features, labels, num_classes, ignore_index)
    assert value.item() == pytest.approx(expected.item(), rel=1e-10, abs=1e-13)
    (got,) = torch.autograd.grad(value, features)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_the_thresholds_bite():
    """The problem of the test above has entries on both sides of each threshold."""
    for cls in (C2C, C2P):
        losses = [cls(threshold)(*_with_centers(3)) for threshold in (0.0, 0.25, 0.5, 0.9, 1.0)]
        assert all(a > b for a, b in zip(losses, losses[1:]))


def _with_centers(seed, num_classes=5, **options):
    features, labels = problem(seed, **options)
    return features, labels, *class_centers(features, labels, num_classes)


# ---- no pixels, and features far from 0 ----


def test_no_pixel_at_all():
    """What a rank without images contributes."""
    features = torch.zeros(0, 4, dtype=torch.float64, requires_grad=True)
    got = values([cls() for cls in ALL], features, torch.zeros(0, dtype=torch.long), 3)
    assert all(value.isfinite() for value in got.values())
    (grad,) = torch.autograd.grad(sum(got.values()), features)
    assert grad.shape == (0, 4)


@every_formulation
def test_distances_far_from_0_in_single_precision(formulation):
    """A spread of 1 around 1000: |x|^2 - 2 x mu + |mu|^2 would have no digit left."""
    features, labels = problem(15, pixels=300)
    features = features.detach() + 1000
    expected = naive(INTRA(formulation), features, labels, 5)
    value = one(INTRA(formulation), features.float(), labels, 5)
    assert value.item() == pytest.approx(expected.item(), rel=2e-4)


# ---- options ----


@pytest.mark.parametrize(
    'call',
    [
        lambda x, y: class_centers(x, y, 3),
        lambda x, y: INTRA()(x, y, torch.zeros(3, 4), torch.zeros(3)),
        lambda x, y: C2P()(x, y, torch.zeros(3, 4), torch.zeros(3)),
    ],
)
def test_maps_are_refused_with_what_to_do(call):
    with pytest.raises(ValueError, match=r'permute\(0, 2, 3, 1\)'):
        call(torch.zeros(2, 4, 3, 3), torch.zeros(2, 3, 3, dtype=torch.long))


# ---- cost ----


@every_formulation
@pytest.mark.parametrize('classes', ['all', 'present'])
def test_no_loop_and_no_host_synchronisation(formulation, classes):
    counts = []
    for num_classes in (3, 12):
        features, labels = problem(14, pixels=21, num_classes=num_classes)
        losses = [
            INTRA(formulation),
            *(
                cls(formulation=formulation, classes=classes, threshold_classes=classes)
                for cls in (C2C, C2P)
            ),
        ]
        with CountOps() as ops:
            sum(values(losses, features, labels, num_classes).values()).backward()
        assert not ops.synchronising
        counts.append(ops.total)
    assert counts[0] == counts[1]
