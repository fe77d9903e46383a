import math

import pytest
import torch

from mmseg_cmdl.models.memory import DistributionBank, InitialMemory, sinkhorn
from mmseg_cmdl.utils import class_rows
from tests.reference import golden, mdrl

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-6}


def _bank(distributions, **options):
    """A bank that holds the given [K, N, Z] tensor, in its precision."""
    bank = DistributionBank(*distributions.shape, **options).to(distributions.dtype)
    bank.distributions.copy_(distributions)
    return bank


def _problem(
    seed, num_classes=5, num=3, channels=8, pixels=90, absent=(), dtype=torch.float64, spread=0.7
):
    """Unit bank, unit embeddings around their class's vectors, labels with some ignored."""
    g = torch.Generator().manual_seed(seed)
    bank = mdrl.unit(torch.randn(num_classes, num, channels, generator=g, dtype=torch.float64))
    present = [c for c in range(num_classes) if c not in absent]
    labels = torch.tensor(present)[torch.randint(len(present), (pixels,), generator=g)]
    which = torch.randint(num, (pixels,), generator=g)
    noise = torch.randn(pixels, channels, generator=g, dtype=torch.float64)
    embeddings = mdrl.unit(bank[labels, which] + spread * noise)
    labels[torch.rand(pixels, generator=g) < 0.15] = 255
    return bank.to(dtype), embeddings.to(dtype), labels


# ---- recorded numbers ----


@pytest.mark.parametrize('name', golden.names('mdrl_update_*'))
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_golden_update(name, dtype):
    data = golden.load(name, dtype)
    several = data['embeddings'].dim() == 3
    keys = ('embeddings', 'pixel_labels', 'correct', 'bank_after')
    steps = zip(*(data[key] if several else data[key][None] for key in keys))
    bank = _bank(
        data['bank_before'],
        momentum=data['momentum'],
        epsilon=data['epsilon'],
        iterations=data['iterations'],
    )
    for embeddings, labels, correct, after in steps:
        bank.update_(embeddings, labels, correct, ignore_index=data['ignore_index'])
        torch.testing.assert_close(bank.distributions, after, rtol=0, atol=TOLERANCE[dtype])
    change = bank.distributions - data['bank_before']
    torch.testing.assert_close(change, data['bank_change'], rtol=0, atol=2 * TOLERANCE[dtype])
    assert change.abs().max() > 100 * TOLERANCE[dtype]


@pytest.mark.parametrize('name', golden.names('mdrl_update_*'))
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_golden_assignment(name, dtype):
    """The recorded balance of every step, and the choice that the bank makes of it."""
    data = golden.load(name, dtype)
    several = data['embeddings'].dim() == 3
    keys = ('embeddings', 'pixel_labels', 'soft_assignment', 'hard_assignment', 'bank_after')
    before = data['bank_before']
    for embeddings, labels, soft, hard, after in zip(
        *(data[key] if several else data[key][None] for key in keys)
    ):
        options = dict(epsilon=data['epsilon'], iterations=data['iterations'])
        bank, before = _bank(before, **options), after
        classes = class_rows(labels, bank.num_classes, data['ignore_index'])
        # a class of one pixel is balanced evenly whatever its scores are: a tie, not to be compared
        assert 1 not in classes.bincount()[: bank.num_classes]
        own = labels.clamp(max=bank.num_classes - 1)
        own_scores = bank.similarity(embeddings)[torch.arange(len(own)), own]
        got = sinkhorn(own_scores, classes, bank.num_classes, **options)
        assert got.dtype == dtype
        atol = 1e-10 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(got, soft, rtol=0, atol=atol)
        labelled = classes < bank.num_classes
        assert torch.equal(hard >= 0, labelled)
        for choice in (got.argmax(dim=1), bank._assign(own_scores, classes, draw=False)):
            assert torch.equal(choice[labelled], hard[labelled])


# ---- against the naive form ----


@pytest.mark.parametrize('update_pixels', ['correct', 'all'])
@pytest.mark.parametrize('given', [True, False], ids=['correct_given', 'correct_found'])
@pytest.mark.parametrize(
    ('num_classes', 'num', 'pixels', 'absent', 'momentum'),
    [
        *((5, 3, 90, (2,), momentum) for momentum in (0.0, 0.5, 0.9, 1.0)),
        (4, 1, 60, (), 0.9),  # N = 1
        (3, 9, 14, (), 0.9),  # fewer pixels than distributions
        (6, 4, 5, (), 0.9),  # classes of one pixel
        (1, 4, 40, (), 0.9),  # one class
    ],
)
def test_update_equals_the_naive_form(
    update_pixels, given, num_classes, num, pixels, absent, momentum
):
    distributions, embeddings, labels = _problem(
        num_classes + pixels, num_classes, num, pixels=pixels, absent=absent
    )
    correct = None
    if given:
        correct = torch.rand(pixels, generator=torch.Generator().manual_seed(3)) < 0.6
    bank = _bank(distributions, momentum=momentum, update_pixels=update_pixels)
    counts = bank.update_(embeddings, labels, correct)
    expected, _, _ = mdrl.update(
        distributions, embeddings, labels, correct, momentum, pixels=update_pixels
    )
    labelled = labels != 255
    # a class of one pixel is an exact tie in the assignment; both take the first distribution
    torch.testing.assert_close(bank.distributions, expected, rtol=0, atol=1e-12)
    assert ((expected - distributions).abs().max() > 1e-4) == (momentum < 1)
    own = (
        correct
        if given
        else torch.tensor(
            [mdrl.nearest_is_own(distributions, e, int(c)) for e, c in zip(embeddings, labels)]
        )
    )
    assert counts.labelled == labelled.sum()
    assert counts.correct == (own & labelled).sum()
    assert counts.left_out == 0


def test_a_hand_made_step():
    """Two classes of one distribution in the plane: d = unit(0.75 d + 0.25 unit(sum of pixels))."""
    distributions = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]).double()
    embeddings = mdrl.unit(torch.tensor([[1.0, 0.2], [1.0, -0.1], [0.1, 1.0], [1.0, 0.0]]).double())
    labels = torch.tensor([0, 0, 1, 1])  # the last one is nearer to class 0: left out
    bank = _bank(distributions, momentum=0.75)
    bank.update_(embeddings, labels)
    b0, b1 = mdrl.unit(embeddings[0] + embeddings[1]), embeddings[2]
    expected = torch.stack(
        [
            mdrl.unit(0.75 * distributions[0, 0] + 0.25 * b0),
            mdrl.unit(0.75 * distributions[1, 0] + 0.25 * b1),
        ]
    )
    torch.testing.assert_close(bank.distributions[:, 0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ('embeddings', 'dtype'),
    [
        ([[1.0, 0.0], [-1.0, 0.0]], torch.float32),
        ([[0.0, 1e-300]], torch.float64),
        ([[0.0, 1e-20]], torch.float64),
    ],
)
def test_a_sum_without_a_direction_leaves_the_row(embeddings, dtype):
    """Of opposite vectors, or what rounding leaves of it; momentum 0 makes no NaN of the row."""
    distributions = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]], dtype=dtype)
    bank = _bank(distributions, momentum=0.0, update_pixels='all')
    bank.update_(torch.tensor(embeddings, dtype=dtype), torch.zeros(len(embeddings)).long())
    assert torch.equal(bank.distributions, distributions)


def test_start_values_of_length_zero_are_not_taken(tmp_path):
    """A row that the file calls filled, but that has no direction, stays random."""
    bank = DistributionBank(2, 2, 3)
    before = bank.distributions.clone()
    centers = torch.zeros(2, 2, 3)
    centers[0, 0, 0] = 2.0
    filled = torch.ones(2, 2, dtype=torch.bool)
    InitialMemory(centers, filled, torch.ones(2, dtype=torch.int64), ['a', 'b']).save(
        tmp_path / 'memory.pth'
    )
    bank.initial_path = str(tmp_path / 'memory.pth')
    bank.take_initial_()
    assert bank.distributions[0, 0].tolist() == [1, 0, 0]
    assert torch.equal(bank.distributions.flatten(0, 1)[1:], before.flatten(0, 1)[1:])


def test_embeddings_of_length_zero():
    """Where the activation is zero in all channels there is no direction to move in."""
    distributions, embeddings, labels = _problem(19)
    embeddings[::2] = 0
    bank = _bank(distributions, momentum=0.0, update_pixels='all')
    bank.update_(embeddings, labels)
    lengths = bank.distributions.norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-12)
    bank = _bank(distributions, momentum=0.0)
    bank.update_(torch.zeros_like(embeddings), labels, torch.ones_like(labels, dtype=torch.bool))
    assert torch.equal(bank.distributions, distributions)


# ---- state ----


def test_start():
    torch.manual_seed(0)
    bank = DistributionBank(7, 5, 64)
    assert bank.distributions.shape == (7, 5, 64)
    assert bank.distributions.dtype == torch.float32
    torch.testing.assert_close(bank.distributions.norm(dim=-1), torch.ones(7, 5))
    cosines = torch.einsum('az,bz->ab', *[bank.distributions.flatten(0, 1)] * 2)
    assert (cosines - torch.eye(35)).abs().max() < 0.7  # spread, no two rows alike
    assert bank.distributions.mean().abs() < 0.01


# ---- the random assignment ----


def test_gumbel_depends_on_seed_and_step_only():
    distributions, embeddings, labels = _problem(17)

    def changes(seed, steps=2):
        bank = _bank(
            distributions, assignment='gumbel', update_pixels='all', momentum=0.0, seed=seed
        )
        seen = []
        for _ in range(steps):
            bank.distributions.copy_(distributions)
            bank.update_(embeddings, labels)
            seen.append(bank.distributions.clone())
        return seen

    first, second = changes(0)
    torch.manual_seed(99)
    again = changes(0)
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])
    assert not torch.equal(first, second)
    assert not torch.equal(first, changes(1)[0])
    argmax = _bank(distributions, update_pixels='all', momentum=0.0)
    argmax.update_(embeddings, labels)
    assert not torch.equal(first, argmax.distributions)


def test_gumbel_noise_is_added_to_the_soft_assignment():
    """Two pixels per class, each surely on its own vector: it keeps it with e / (e + 1) = 0.731.

    Adding the noise to the logarithm instead would keep it always, a random choice half the time.
    """
    num_classes = 4000
    vectors = mdrl.unit(torch.tensor([[1.0, 0.1], [-0.1, 1.0]]).double())
    bank = _bank(
        vectors.expand(num_classes, 2, 2).contiguous(),
        assignment='gumbel',
        update_pixels='all',
        momentum=0.0,
    )
    embeddings = torch.eye(2).double().repeat(num_classes, 1)
    labels = torch.arange(num_classes).repeat_interleave(2)
    bank.update_(embeddings, labels)
    x, y = bank.distributions[:, 0, 0], bank.distributions[:, 0, 1]  # vector 0 of each class
    took_first = x > 0.999
    took_both = (x - 0.5**0.5).abs() < 1e-6
    took_none = (y - vectors[0, 1]).abs() < 1e-9
    took_second = y > 0.999
    assert (took_first.int() + took_both.int() + took_none.int() + took_second.int() == 1).all()
    keep = math.e / (math.e + 1)
    for seen, expected in [
        (took_first, keep * keep),
        (took_both, keep * (1 - keep)),
        (took_none, keep * (1 - keep)),
        (took_second, (1 - keep) ** 2),
    ]:
        assert seen.double().mean().item() == pytest.approx(expected, abs=0.025)
