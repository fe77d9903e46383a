import math

import pytest
import torch
import torch.nn.functional as F

from mmseg_cmdl.models.memory import FeatureBank
from tests.reference import golden, mcibi, mdrl
from tests.reference.dispatch import LargestTensor

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
STRATEGIES = ('cosine', 'mean')


def _bank(memory, filled=None, **options):
    """A bank that holds the given [K, C] tensor, in its precision; all classes in it by default."""
    bank = FeatureBank(*memory.shape, **options).to(memory.dtype)
    bank.features.copy_(memory)
    bank.filled.copy_(torch.ones(len(memory)) if filled is None else filled)
    return bank


def _problem(seed, num_classes=5, channels=8, pixels=90, absent=(), empty=(), dtype=torch.float64):
    """Memory with some classes empty, features around it, labels with some ignored."""
    g = torch.Generator().manual_seed(seed)
    memory = torch.randn(num_classes, channels, generator=g, dtype=torch.float64)
    present = torch.tensor([c for c in range(num_classes) if c not in absent])
    labels = present[torch.randint(len(present), (pixels,), generator=g)]
    features = memory[labels] + torch.randn(pixels, channels, generator=g, dtype=torch.float64)
    labels[torch.rand(pixels, generator=g) < 0.15] = 255
    filled = torch.tensor([c not in empty for c in range(num_classes)])
    memory[~filled] = 0
    return memory.to(dtype), filled, features.to(dtype), labels


def _maps(seed, size, label_size, num_classes=4, channels=6, batch=2, dtype=torch.float64):
    """Feature maps and label maps of another size, class 1 absent, some pixels ignored."""
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, channels, *size, generator=g, dtype=torch.float64)
    labels = torch.randint(num_classes, (batch, *label_size), generator=g)
    labels[labels == 1] = 0
    labels[torch.rand(labels.shape, generator=g) < 0.2] = 255
    memory = torch.randn(num_classes, channels, generator=g, dtype=torch.float64)
    return memory.to(dtype), features.to(dtype), labels


# ---- recorded numbers ----


@pytest.mark.parametrize('name', golden.names('mcibi_update_*'))
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('form', ['pixels', 'maps'])
def test_golden_update(name, dtype, form):
    data = golden.load(name, dtype)
    memory = data['memory_before'].squeeze(1)
    bank = _bank(memory, memory.any(dim=1), strategy=name.split('_')[2])
    assert (~bank.filled).nonzero()[:, 0].tolist() == data['empty_classes'].tolist()
    steps = zip(data['features'], data['labels'], data['momentum'], data['memory_after_each'])
    for features, labels, momentum, after in steps:
        if form == 'pixels':
            features = features.permute(0, 2, 3, 1).flatten(0, 2)
            bank.update_(features, labels.flatten(), momentum, data['ignore_index'])
        else:
            bank.update_(features, labels, momentum.item(), data['ignore_index'])
        torch.testing.assert_close(bank.features, after.squeeze(1), rtol=0, atol=TOLERANCE[dtype])
    assert (bank.features - memory).abs().max() > 0.01
    unseen = set(data['empty_classes'].tolist()) & set(data['absent_classes'].tolist())
    assert set((~bank.filled).nonzero()[:, 0].tolist()) == unseen


# ---- against the naive form ----


@pytest.mark.parametrize('strategy', STRATEGIES)
@pytest.mark.parametrize('momentum', [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ('num_classes', 'pixels', 'absent', 'empty'),
    [
        (5, 90, (2,), (1, 2)),
        (6, 5, (), (0,)),  # classes of one pixel
        (1, 20, (), ()),
    ],
)
def test_update_equals_the_naive_form(strategy, momentum, num_classes, pixels, absent, empty):
    memory, filled, features, labels = _problem(
        pixels, num_classes, pixels=pixels, absent=absent, empty=empty
    )
    bank = _bank(memory, filled, strategy=strategy)
    counts = bank.update_(features, labels, momentum)
    expected, now_filled = mcibi.update(memory, filled, features, labels, momentum, strategy)
    torch.testing.assert_close(bank.features, expected, rtol=0, atol=1e-12)
    assert torch.equal(bank.filled, now_filled)
    assert counts.labelled == (labels != 255).sum()
    assert counts.left_out == 0
    assert bank.num_updates == 1


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('strategy', STRATEGIES)
@pytest.mark.parametrize(
    ('size', 'label_size'),
    [
        ((4, 5), (9, 11)),
        ((3, 4), (24, 32)),
        ((5, 6), (5, 6)),
        ((1, 1), (4, 3)),
        ((6, 7), (3, 4)),
        ((4, 4), (1, 1)),
        ((1, 5), (7, 3)),
    ],
    ids=str,
)
def test_update_at_label_size_equals_resizing_first(size, label_size, strategy, align_corners):
    """Eq. 8 with the map written out, by loops."""
    memory, features, labels = _maps(sum(size), size, label_size)
    filled = torch.tensor([True, True, True, False])
    memory[3] = 0
    bank = _bank(memory, filled, strategy=strategy)
    counts = bank.update_(features, labels, 0.4, align_corners=align_corners)
    resized = mdrl.resize(features, label_size, align_corners)
    torch.testing.assert_close(
        resized, F.interpolate(features, label_size, mode='bilinear', align_corners=align_corners)
    )
    expected, now_filled = mcibi.update(
        memory, filled, resized.permute(0, 2, 3, 1).flatten(0, 2), labels.flatten(), 0.4, strategy
    )
    torch.testing.assert_close(bank.features, expected, rtol=0, atol=1e-12)
    assert torch.equal(bank.filled, now_filled)
    assert torch.equal(bank.features[1], memory[1])  # absent
    assert counts.labelled == (labels != 255).sum()


def test_a_hand_made_step():
    """One pixel parallel to the memory weighs nothing, one across it 1, one against it 2."""
    bank = _bank(torch.tensor([[1.0, 0.0]]).double())
    features = torch.tensor([[5.0, 0.0], [0.0, 3.0], [-6.0, 0.0]]).double()
    bank.update_(features, torch.zeros(3, dtype=torch.long), 0.25)
    target = torch.tensor([(0 * 5 + 1 * 0 + 2 * -6) / 3, 1 * 3 / 3])
    torch.testing.assert_close(
        bank.features[0], 0.75 * torch.tensor([1.0, 0.0]).double() + 0.25 * target.double()
    )


# ---- where the paper divides 0 by 0, and other empty cases ----


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('form', ['pixels', 'maps'])
def test_pixels_parallel_to_the_memory_give_their_plain_mean(dtype, form):
    """All weights of eq. 10 are 0, or what rounding leaves of it, also below 0."""
    memory = torch.randn(3, 64, dtype=dtype)
    labels = torch.arange(3).repeat(40)
    lengths = torch.rand(120, 1, dtype=dtype) + 0.5
    features = memory[labels] * lengths
    bank = _bank(memory)
    if form == 'pixels':
        bank.update_(features, labels, 0.5)
    else:
        bank.update_(features.view(1, 12, 10, 64).permute(0, 3, 1, 2), labels.view(1, 12, 10), 0.5)
    for c in range(3):
        expected = 0.5 * memory[c] + 0.5 * features[labels == c].mean(0)
        torch.testing.assert_close(bank.features[c], expected, rtol=0, atol=TOLERANCE[dtype])


def test_a_row_of_zeros_can_be_filled():
    """A class whose pixels are all zero is in memory nevertheless, and moves on from there."""
    bank = FeatureBank(2, 4).double()
    bank.update_(torch.zeros(6, 4).double(), torch.zeros(6, dtype=torch.long), 0.9)
    assert bank.filled.tolist() == [True, False]
    pixels = torch.randn(6, 4).double()
    bank.update_(pixels, torch.zeros(6, dtype=torch.long), 0.25)
    torch.testing.assert_close(bank.features[0], 0.25 * pixels.mean(0))


def test_features_of_length_zero_and_opposite_ones():
    memory, filled, features, labels = _problem(2)
    features[::3] = 0
    features[1::3] = -memory[labels.clamp(max=4)][1::3]
    bank = _bank(memory)
    bank.update_(features, labels, 0.5)
    expected, _ = mcibi.update(memory, filled, features, labels, 0.5)
    torch.testing.assert_close(bank.features, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('length', [1e-5, 1.0, 1e5])
def test_the_cosine_has_no_scale(length):
    """Short vectors have directions as well: what moves the bank scales with them."""
    memory, filled, features, labels = _problem(16)
    bank = _bank(memory * length)
    bank.update_(features * length, labels, 0.5)
    expected, _ = mcibi.update(memory, filled, features, labels, 0.5)
    torch.testing.assert_close(bank.features / length, expected, rtol=0, atol=1e-12)


def test_neighbours_that_cancel():
    """Interpolated to length 0 in the middle: the weights stay finite and in their range."""
    features = torch.tensor([1.0, -1.0]).view(1, 1, 1, 2).expand(1, 8, 1, 2).contiguous()
    bank = _bank(torch.ones(1, 8))
    bank.update_(features, torch.zeros(1, 3, 9, dtype=torch.long), 0.5)
    assert bank.features.isfinite().all()
    assert bank.features.abs().max() <= 1


# ---- what must not count ----


def test_a_momentum_that_is_no_number_moves_nothing():
    """As one's own annealing may give it; a class that is first seen needs none."""
    memory, filled, features, labels = _problem(7, empty=(0,))
    bank = _bank(memory, filled)
    bank.update_(features, labels, torch.tensor(math.nan, dtype=torch.float64))
    assert torch.equal(bank.features[1:], memory[1:])
    assert bank.features[0].isfinite().all()
    assert bank.features[0].any()


@pytest.mark.parametrize('bad', [math.nan, math.inf])
@pytest.mark.parametrize('align_corners', [False, True])
def test_label_pixels_with_a_share_of_a_non_finite_cell_are_left_out(bad, align_corners):
    memory, features, labels = _maps(8, (4, 5), (12, 15))
    features[1, 2, 1, 3] = bad
    bank = _bank(memory)
    counts = bank.update_(features, labels, 0.5, align_corners=align_corners)
    resized = mdrl.resize(features, (12, 15), align_corners).permute(0, 2, 3, 1).flatten(0, 2)
    expected, _ = mcibi.update(memory, bank.filled, resized, labels.flatten(), 0.5)
    torch.testing.assert_close(bank.features, expected, rtol=0, atol=1e-12)
    left_out = ~resized.isfinite().all(1) & (labels.flatten() != 255)
    assert counts.left_out == left_out.sum()
    assert 10 < left_out.sum() < 60


# ---- precision and cost ----


def test_no_feature_is_formed_at_label_size():
    """Nothing an update makes is as large as a quarter of one resized image."""
    memory, features, labels = _maps(17, (8, 8), (128, 128), channels=64, dtype=torch.float32)
    with LargestTensor() as made:
        _bank(memory).update_(features, labels, 0.5)
    assert made.largest <= 4 * 64 * 128 * 128 // 4
