"""What holds of every memory bank: what moves it, what doesn't, its state, precision and cost."""

import copy
import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from mmseg.registry import MODELS

from mmseg_cmdl.models.memory import FeatureBank
from tests.reference import golden
from tests.reference.dispatch import CountOps

KINDS = dict(
    distributions=dict(
        type='DistributionBank', num_distributions=3, momentum=0.5, update_pixels='all'
    ),
    drawn=dict(
        type='DistributionBank',
        num_distributions=3,
        momentum=0.5,
        update_pixels='all',
        assignment='gumbel',
    ),
    features=dict(type='FeatureBank'),
    mean_features=dict(type='FeatureBank', strategy='mean'),
    statistics=dict(type='GaussianBank', momentum=0.5),
)
every_bank = pytest.mark.parametrize('kind', KINDS)
in_half = pytest.mark.parametrize('half', [torch.bfloat16, torch.float16])


def batch(seed, num_classes=5, pixels=96, dtype=torch.float64):
    """Unit vectors [P, 8], and labels of which some are ignored."""
    g = torch.Generator().manual_seed(seed)
    vectors = F.normalize(torch.randn(pixels, 8, generator=g, dtype=torch.float64), dim=1)
    labels = torch.randint(num_classes, (pixels,), generator=g)
    labels[torch.rand(pixels, generator=g) < 0.15] = 255
    return vectors.to(dtype), labels


def as_maps(vectors, labels):
    """One image of 8 x P / 8 pixels."""
    return vectors.view(1, 8, -1, 8).permute(0, 3, 1, 2), labels.view(1, 8, -1)


def takes_no_maps(kind):
    return KINDS[kind]['type'] == 'DistributionBank'


def move(bank, vectors, labels, **options):
    if isinstance(bank, FeatureBank):
        options['momentum'] = 0.5
    return bank.update_(vectors, labels, **options)


def memory(bank):
    return getattr(bank, bank.memory_name)


def build(kind, dtype=torch.float64, moved=True, **options):
    """A bank of 5 classes, once moved by all of them."""
    options = dict(dict(num_classes=5, channels=8, **KINDS[kind]), **options)
    bank = MODELS.build(options).to(dtype)
    if moved:
        move(bank, *batch(0, options['num_classes'], dtype=dtype))
    return bank


# ---- what moves it ----


@every_bank
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_absent_classes_are_untouched_to_the_bit(kind, dtype):
    bank = build(kind, dtype)
    before = memory(bank).clone()
    vectors, labels = batch(1, dtype=dtype)
    labels[(labels == 1) | (labels == 3)] = 0
    move(bank, vectors, labels)
    for c in range(5):
        assert torch.equal(memory(bank)[c], before[c]) == (c in (1, 3))


@every_bank
@pytest.mark.parametrize('ignore_index', [255, -1, 2])
def test_ignored_pixels_count_nowhere(kind, ignore_index):
    """Whatever they hold, NaN included, the bank is that of the others alone."""
    bank = build(kind)
    before = memory(bank).clone()
    vectors, labels = batch(2)
    labels[labels == 2] = 255
    ignored = labels == 255
    labels[ignored] = ignore_index
    wild = vectors.clone()
    wild[ignored] = 1e6
    wild[ignored.nonzero()[0]] = math.nan
    for form in [lambda *x: x] if takes_no_maps(kind) else [lambda *x: x, as_maps]:
        moved, others = copy.deepcopy(bank), copy.deepcopy(bank)
        counts = move(moved, *form(wild, labels), ignore_index=ignore_index)
        # draws go by the places of the pixels
        kept = slice(None) if kind == 'drawn' else ~ignored
        move(others, vectors[kept], labels[kept], ignore_index=ignore_index)
        torch.testing.assert_close(memory(moved), memory(others), rtol=0, atol=1e-14)
        assert torch.equal(memory(moved)[2], before[2])
        assert counts.labelled == (~ignored).sum()
        assert counts.left_out == 0


@every_bank
@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_vectors_that_are_not_finite_are_left_out_and_counted(kind, bad):
    """The bank is that of the other pixels, as if these had no label."""
    bank = build(kind)
    if takes_no_maps(kind):  # of one sign, so that an inf times these and their sum is inf, not NaN
        memory(bank)[..., 3].abs_()
    alone = copy.deepcopy(bank)
    vectors, labels = batch(12)
    poisoned = (labels != 255).nonzero()[[2, 11, 30], 0]
    wild, others = vectors.clone(), labels.clone()
    wild[poisoned[0]] = bad
    wild[poisoned[1], 3] = bad  # one channel is enough
    wild[poisoned[2], 0], wild[poisoned[2], 1] = bad, -bad
    others[poisoned] = 255
    counts = move(bank, wild, labels)
    move(alone, vectors, others)
    torch.testing.assert_close(memory(bank), memory(alone), rtol=0, atol=1e-12)
    assert counts.left_out == 3
    assert counts.labelled == (labels != 255).sum()


@every_bank
@pytest.mark.parametrize('scale', [1e4, 1e15, 1e18, 1e25, 1e30, 1e38])
def test_vectors_of_any_length(kind, scale):
    """Also such that their squares leave float32."""
    bank = build(kind, torch.float32)
    vectors, labels = batch(13, dtype=torch.float32)
    move(bank, vectors * scale, labels)
    if not takes_no_maps(kind):
        move(bank, *as_maps(vectors * scale, labels))
    assert memory(bank).isfinite().all()
    if bank.memory_name == 'distributions':
        lengths = memory(bank).norm(dim=-1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-6)


@every_bank
def test_batches_without_a_label_or_a_pixel_leave_it(kind):
    bank = build(kind)
    before = memory(bank).clone()
    vectors, labels = batch(3)
    batches = [(vectors, torch.full_like(labels, 255)), (vectors[:0], labels[:0])]
    if not takes_no_maps(kind):
        batches.append((torch.zeros(0, 8, 2, 2).double(), torch.zeros(0, 6, 6).long()))
    for pixels in batches:
        counts = move(bank, *pixels)
        assert torch.equal(memory(bank), before)
        assert all(count == 0 for count in counts)


@every_bank
def test_what_was_read_stays_valid_after_an_update(kind):
    bank = build(kind)
    frozen = copy.deepcopy(bank).eval()
    points = batch(4)[0].requires_grad_()
    weights = torch.rand(1, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    value, expected = (
        golden.probe(b.similarity(points)) + golden.probe(b.vote(weights)) for b in (bank, frozen)
    )
    move(bank, *batch(5))
    assert not torch.allclose(memory(bank), memory(frozen), atol=1e-3)
    for got, want in zip(
        torch.autograd.grad(value, (points, weights)),
        torch.autograd.grad(expected, (points, weights)),
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.skipif(not shutil.which('g++'), reason='code for a CPU needs a C++ compiler')
@pytest.mark.parametrize('kind', ['distributions', 'features'])
def test_what_was_read_in_a_compiled_graph_stays_valid(kind):
    """The backward pass doesn't form the copy anew, from a bank that has moved by then."""
    first, grads = build(kind, torch.float32), []
    for compiled in (False, True):
        bank = copy.deepcopy(first)

        def read(pixels, bank=bank):
            return (pixels @ bank.class_vectors().flatten(0, 1).t()).square().sum()

        pixels = batch(2, dtype=torch.float32)[0].requires_grad_()
        total = (torch.compile(read) if compiled else read)(pixels)
        move(bank, *batch(1, dtype=torch.float32))
        grads += torch.autograd.grad(total, pixels)
    torch.testing.assert_close(grads[1], grads[0])


@every_bank
def test_the_global_generator_is_left_alone(kind):
    bank = build(kind)
    state = torch.get_rng_state()
    move(bank, *batch(6))
    assert torch.equal(torch.get_rng_state(), state)


# ---- state ----


@every_bank
def test_state_is_in_buffers_that_change_in_place(kind):
    bank = build(kind)
    assert {bank.memory_name, 'num_updates'} <= set(bank.state_dict())
    assert not list(bank.parameters())
    bank.requires_grad_(True)
    buffers = {name: (buffer, buffer.data_ptr()) for name, buffer in bank.named_buffers()}
    vectors, labels = batch(7)
    move(bank, vectors.requires_grad_(), labels)
    for name, (buffer, address) in buffers.items():
        assert getattr(bank, name) is buffer
        assert buffer.data_ptr() == address
        assert not buffer.requires_grad
        assert buffer.grad_fn is None


@every_bank
def test_resumed_equals_uninterrupted(kind):
    """Class 3 is first seen after resuming."""
    whole, saved = build(kind, torch.float32, moved=False), None
    for step in range(6):
        vectors, labels = batch(step, dtype=torch.float32)
        move(whole, vectors, torch.where(labels == 3, 255, labels) if step < 3 else labels)
        if step == 2:
            saved = copy.deepcopy(whole.state_dict())
    resumed = build(kind, torch.float32, moved=False)
    resumed.load_state_dict(saved)
    if 'features' in kind:
        assert resumed.filled.tolist() == [True, True, True, False, True]
    torch.randn(10)  # the global generator has no say
    for step in range(3, 6):
        move(resumed, *batch(step, dtype=torch.float32))
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


# ---- precision and cost ----


@every_bank
def test_update_is_in_full_precision_under_autocast(kind):
    pixels = batch(9, dtype=torch.float32)
    for given in [pixels] if takes_no_maps(kind) else [pixels, as_maps(*pixels)]:
        inside = build(kind, torch.float32)
        outside = copy.deepcopy(inside)
        with torch.autocast('cpu', torch.bfloat16):
            move(inside, *given)
        move(outside, *given)
        assert torch.equal(memory(inside), memory(outside))


@every_bank
@in_half
def test_half_precision(kind, half):
    """Half precision vectors into a single precision bank, and into one stored in half."""
    vectors, labels = batch(10, dtype=torch.float32)
    for stored in (torch.float32, half):
        bank = build(kind, torch.float32).to(half).to(stored)
        exact = copy.deepcopy(bank).float()
        move(bank, vectors.to(half), labels)
        move(exact, vectors.to(half).float(), labels)
        assert memory(bank).dtype == stored
        torch.testing.assert_close(memory(bank), memory(exact).to(stored), rtol=0, atol=0)


@every_bank
@pytest.mark.parametrize('training', [True, False])
def test_similarity_and_vote_are_products_with_the_classes_vectors(kind, training):
    """MDRL eq. 9, MCIBI eq. 12, with the gradient of the weights."""
    bank = build(kind).train(training)
    vectors = batch(1)[0].view(12, 2, 4, 8)
    expected = torch.einsum('abcz,knz->abckn', vectors, bank.class_vectors())
    torch.testing.assert_close(bank.similarity(vectors), expected, rtol=0, atol=1e-12)
    weights = torch.rand(2, 5, 4, 6, dtype=torch.float64, requires_grad=True)
    voted = bank.vote(weights)
    naive = torch.einsum('bkhw,knc->bnchw', weights, bank.class_vectors()).flatten(1, 2)
    torch.testing.assert_close(voted, naive, rtol=0, atol=1e-12)
    got, expected = (torch.autograd.grad(golden.probe(x), weights)[0] for x in (voted, naive))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)


@every_bank
def test_no_loop_and_no_host_synchronisation(kind):
    """The same operations whatever the sizes are, and none that waits for the device."""
    counts = []
    for num_classes, num, pixels in [(3, 2, 40), (11, 7, 96)]:
        options = dict(num_distributions=num) if takes_no_maps(kind) else {}
        bank = build(kind, num_classes=num_classes, **options)
        given = batch(11, num_classes, pixels)
        with CountOps() as ops:
            move(bank, *given)
            if not takes_no_maps(kind):
                move(bank, *as_maps(*given))
        assert not ops.synchronising
        counts.append(ops.total)
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ('kind', 'option', 'value', 'said'),
    [
        *((kind, 'num_classes', 0, 'num_classes must be an integer') for kind in KINDS),
        ('distributions', 'assignment', 'random', "'random'"),
        ('distributions', 'update_pixels', 'some', "'some'"),
        ('distributions', 'momentum', 1.5, r'in \[0, 1\], got 1\.5'),
        ('distributions', 'momentum', -0.1, r'got -0\.1'),
        ('distributions', 'epsilon', 0.0, 'epsilon must be positive, got 0'),
        ('distributions', 'iterations', 0, 'iterations .* got 0'),
        ('distributions', 'num_distributions', 0, 'num_distributions .* got 0'),
        ('distributions', 'channels', 0, 'channels .* got 0'),
        ('features', 'channels', 0, 'channels .* got 0'),
        ('features', 'strategy', 'random', "strategy .* 'random'"),
        ('statistics', 'channels', 1, 'channels must be at least 2 for a standard deviation'),
        ('statistics', 'momentum', 1.5, r'momentum .* in \[0, 1\], got 1\.5'),
    ],
)
def test_options_out_of_range_are_named(kind, option, value, said):
    with pytest.raises(ValueError, match=said):
        build(kind, moved=False, **{option: value})
