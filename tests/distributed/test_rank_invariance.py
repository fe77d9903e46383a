"""The same global batch gives the same bank and gradients in 1, 2 and 4 gloo processes."""

import os

import pytest
import torch

from tests.distributed import mcibi_scenarios, scenarios
from tests.distributed.launch import results_of_ranks
from tests.models.decode_heads import tiny_head

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or os.name != 'posix', reason='needs gloo and fork'
)
ATOL = {torch.float64: 1e-10, torch.float32: 1e-5}
WORLDS = [2, 4]
BANKS = [
    f'bank_{pixels}_{dtype}' for pixels in ('correct', 'all') for dtype in ('float64', 'float32')
]


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    """World size -> list of every rank's results."""
    return results_of_ranks(tmp_path_factory.mktemp('ranks'), 'tests.distributed.launch')


def _close(got, expected, atol=None):
    torch.testing.assert_close(got, expected, rtol=0, atol=atol or ATOL[expected.dtype])


@pytest.mark.parametrize('world', WORLDS)
@pytest.mark.parametrize('name', [*BANKS, 'gumbel'])
def test_bank_is_equal_to_the_bit_on_all_ranks(results, name, world):
    first, *others = (rank[name]['bank'] for rank in results[world])
    assert len(others) == world - 1
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize('world', [1, *WORLDS])
@pytest.mark.parametrize('name', [*BANKS, 'gumbel'])
def test_bank_is_that_of_one_process(results, name, world):
    """Five steps; one process without a process group, here, is the reference."""
    if name == 'gumbel':
        expected = scenarios.gumbel_steps(0, 1)
    else:
        dtype = getattr(torch, name.rsplit('_')[-1])
        expected = scenarios.bank_steps(0, 1, dtype, update_pixels=name.split('_')[1])
    _close(results[world][0][name]['bank'], expected['bank'])
    steps = expected['bank'].diff(dim=0).abs().amax((1, 2, 3))
    assert (steps > 1e-3).all()  # it does move, every step
    if name != 'gumbel':
        for rank in results[world]:
            _close(rank[name]['counts'], expected['counts'])
        assert expected['counts'][:, 2].tolist() == [0, 0, 1, 0, 0]  # the non-finite embedding
        assert torch.equal(expected['bank'][0, 5], expected['bank'][-1, 5])  # absent class


@pytest.mark.parametrize('world', WORLDS)
@pytest.mark.parametrize('name', BANKS)
def test_an_update_costs_the_same_few_collectives_everywhere(results, name, world):
    """One per Sinkhorn iteration and one packed sum, whatever the rank's labels are."""
    logs = [rank[name]['log'] for rank in results[world]]
    assert all(log == logs[0] for log in logs)
    assert [len(step) for step in logs[0]] == [3 + 1] * 5
    assert {call for step in logs[0] for call, _ in step} == {'all_reduce'}


@pytest.mark.parametrize('world', [1, *WORLDS])
@pytest.mark.parametrize('name', scenarios.LOSSES)
def test_losses_and_gradients_are_those_of_the_whole_batch(results, name, world):
    """Images are split unevenly; gradients are averaged over ranks, as DDP does."""
    expected = scenarios.losses(0, 1, (4,))[name]
    for rank in results[world]:
        _close(rank['losses'][name]['value'], expected['value'])
        for got, want in zip(rank['losses'][name]['grads'], expected['grads']):
            _close(got, want)
            assert want.abs().max() > 1e-4
        assert rank['losses'][name]['log'] == results[world][0]['losses'][name]['log']
        assert len(rank['losses'][name]['log']) <= 2 * (world > 1)


@pytest.mark.parametrize('world', [1, *WORLDS])
@pytest.mark.parametrize('name', mcibi_scenarios.BANKS)
def test_feature_bank_is_that_of_one_process(results, name, world):
    """Also where a class is first seen by one rank alone, and where a rank has no images."""
    expected = scenarios.mcibi_bank_steps(0, 1, name)
    ranks = [rank[name] for rank in results[world]]
    for rank in ranks:
        assert torch.equal(rank['bank'], ranks[0]['bank'])
        assert torch.equal(rank['filled'], expected['filled'])
        _close(rank['bank'], expected['bank'])
        _close(rank['counts'], expected['counts'])
        assert rank['log'] == ranks[0]['log']
        # one packed sum, whatever the labels are
        assert [[call for call, _ in step] for step in rank['log']] == [
            ['all_reduce'] * (world > 1)
        ] * 5
    assert (expected['bank'].diff(dim=0).abs().amax((1, 2)) > 1e-2).all()
    assert expected['filled'][:, 2].tolist() == [False] + [True] * 4
    assert not expected['filled'][:, 5].any()
    assert (expected['counts'][:, 1] > 0).tolist() == [False, False, True, False, False]


def test_scenarios_hold_what_they_promise():
    """The batch really is uneven: otherwise the tests above would prove little."""
    _, blocks = scenarios._blocks(0)
    labels = [set(block[1].tolist()) - {255} for block in blocks]
    assert labels[1] == set()
    assert labels[2] == {2}
    assert all(2 not in labels[i] for i in (0, 1, 3))
    assert not any(5 in x for x in labels)
    assert sum((block[1] == 4).sum() for block in blocks) == 1
    images = scenarios.image_labels()
    assert (images[1] == 255).all()
    assert [bool((x == 4).any()) for x in images] == [False, False, False, True]
    assert tiny_head.NUM_CLASSES == 5
    assert not (images == 2).any()
