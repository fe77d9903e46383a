"""GaussianBank (MCIBI++): recorded numbers, the naive form, what moves it and what does not."""

import pytest
import torch

from mmseg_cmdl.models import GaussianBank
from mmseg_cmdl.models.memory import InitialMemory
from mmseg_cmdl.models.memory.gaussian_bank import class_noise
from tests.reference import golden, mcibi_plus_plus, mdrl

UPDATES = [name for name in golden.names('mcibipp_update_*') if 'two_ranks' not in name]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-6}


def bank_of(statistics, **options):
    bank = GaussianBank(len(statistics), **options).to(statistics.dtype)
    bank.statistics.copy_(statistics)
    return bank


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('name', UPDATES)
def test_golden_updates(name, dtype):
    data = golden.load(name, dtype)
    bank = bank_of(data['memory_before'])
    for step, momentum in enumerate(data['momentum']):
        bank.momentum = float(momentum)
        bank.update_(data['features'][step], data['labels'][step])
        torch.testing.assert_close(
            bank.statistics, data['memory_after_each'][step], rtol=0, atol=TOLERANCE[dtype]
        )
    assert int(bank.num_updates) == 5


def test_golden_two_ranks_are_the_average_of_two_banks_which_ours_is_not():
    """The release averages its ranks' memories; here the pixels of all ranks are summed."""
    data = golden.load('mcibipp_update_two_ranks')
    averaged = data['memory_before']
    for step, momentum in enumerate(data['momentum'].tolist()):
        ranks = [bank_of(averaged, momentum=momentum) for _ in range(2)]
        for rank, bank in enumerate(ranks):
            bank.update_(data['features'][rank, step], data['labels'][rank, step])
        averaged = (ranks[0].statistics + ranks[1].statistics) / 2
        torch.testing.assert_close(averaged, data['memory_after_each'][step], rtol=0, atol=1e-10)

    memory, momentum = data['memory_before'], float(data['momentum'][0])
    averaged = data['memory_after_each'][0]
    whole = bank_of(memory, momentum=momentum)
    features, labels = data['features'][:, 0].flatten(0, 1), data['labels'][:, 0].flatten(0, 1)
    whole.update_(features, labels)
    pixels = mdrl.resize(features, labels.shape[1:]).permute(0, 2, 3, 1).flatten(0, 2)
    expected = mcibi_plus_plus.update(memory, pixels, labels.flatten(), momentum)
    torch.testing.assert_close(whole.statistics, expected, rtol=0, atol=1e-10)
    # a class that only one rank has moves by all of the momentum, not by half of it
    alone = data['class_seen_by_rank_0_only']
    moved = whole.statistics[alone] - memory[alone]
    torch.testing.assert_close(moved, 2 * (averaged[alone] - memory[alone]), rtol=0, atol=1e-10)


def test_noise_rows_are_the_releases():
    data = golden.load('mcibipp_eps_512channels', torch.float32)
    assert data['seeds'].tolist() == list(range(19))
    before = torch.get_rng_state()
    noise = GaussianBank(19, channels=512).noise
    # the program's own random numbers go on as they were
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(noise, data['eps'], rtol=0, atol=1e-6)
    # a row depends on its class and the length alone
    assert torch.equal(class_noise(3, 512), noise[:3])


def test_vectors_are_the_releases():
    data = golden.load('mcibipp_forward_plain_soft')
    bank = bank_of(data['sd.memory_module.memory'], channels=16)
    vectors = bank.vectors(data['eps'])
    torch.testing.assert_close(vectors, data['class_vectors'], rtol=0, atol=1e-12)
    # with the bank's own rows, which are the recorded ones in float32
    torch.testing.assert_close(bank.class_vectors()[:, 0], vectors, rtol=0, atol=1e-6)


@pytest.mark.parametrize('labels_of', ['feature', 'label'])
def test_update_equals_the_naive_form(labels_of):
    size = (7, 9) if labels_of == 'label' else (3, 4)
    features = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    labels = torch.randint(0, 5, (2, *size))
    labels[labels == 3] = 255
    labels[0, 0, 0] = -7
    start = torch.rand(5, 2, dtype=torch.float64)
    bank = bank_of(start, momentum=0.3)
    counted = bank.update_(features, labels)
    pixels = mdrl.resize(features, size).permute(0, 2, 3, 1).flatten(0, 2)
    expected = mcibi_plus_plus.update(start, pixels, labels.flatten(), 0.3)
    torch.testing.assert_close(bank.statistics, expected, rtol=0, atol=1e-11)
    assert torch.equal(bank.statistics[3], start[3])  # in no pixel
    assert int(counted.labelled) == int(((labels >= 0) & (labels < 5)).sum())
    assert int(counted.left_out) == 0


def test_filled_classes_are_those_that_have_moved():
    bank = GaussianBank(3, channels=4)
    assert bank.filled_classes().tolist() == [False] * 3
    bank.update_(torch.randn(5, 4), torch.tensor([1, 1, 1, 255, 1]))
    assert bank.filled_classes().tolist() == [False, True, False]
    assert bank.statistics[0].tolist() == [0.0, 1.0]


@pytest.mark.parametrize('channels', [4, None])
def test_starts_from_a_file(tmp_path, channels):
    centers = torch.randn(3, 1, 4)
    filled = torch.tensor([[True], [False], [True]])
    path = tmp_path / 'memory.pth'
    InitialMemory(centers, filled, torch.tensor([5, 0, 5]), ['a', 'b', 'c']).save(path)
    bank = GaussianBank(3, channels=channels, init=str(path))
    bank.take_initial_()
    for c in (0, 2):
        expected = torch.tensor(mcibi_plus_plus.statistics(centers[c, 0]))
        torch.testing.assert_close(bank.statistics[c], expected)
    assert bank.statistics[1].tolist() == [0.0, 1.0]
