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
HEADS = [f'head_{name}' for name in (*scenarios.HEADS, 'wild_seed', 'float32')]


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


@pytest.fixture(scope='module')
def one_process():
    """Head scenarios without a process group, each computed once."""
    seen = {}

    def get(name):
        if name not in seen:
            if name in mcibi_scenarios.HEADS:
                seen[name] = scenarios.mcibi_head_steps(0, 1, name)
                return seen[name]
            options = {'wild_seed': dict(wild_seed=True), 'float32': dict(dtype=torch.float32)}
            seen[name] = scenarios.head_steps(
                0, 1, **{**options, **scenarios.HEADS}[name.removeprefix('head_')]
            )
        return seen[name]

    return get


@pytest.mark.parametrize('world', [1, *WORLDS])
@pytest.mark.parametrize('name', HEADS)
def test_training_is_that_of_one_process(results, one_process, name, world):
    """Losses, gradients, weights and bank over three DDP steps."""
    expected, ranks = one_process(name), [rank[name] for rank in results[world]]
    # the host adds 1e-7 to each rank's pixel count, which is 2e-10 of the cross entropy
    atol = 3e-5 if name == 'head_float32' else 1e-9
    for step in range(3):
        for rank in ranks:
            assert torch.equal(rank['bank'][step], ranks[0]['bank'][step])
            for key, grad in rank['grads'][step].items():
                _close(grad, expected['grads'][step][key], atol)
        _close(ranks[0]['bank'][step], expected['bank'][step], atol)
        for key, value in expected['losses'][step].items():
            if key.startswith(('loss_cl', 'loss_cg', 'acc_dist', 'stat_')):  # global numbers
                for rank in ranks:
                    _close(rank['losses'][step][key], value, 10 * atol)
            elif 'loss' in key:  # the host's: each rank's own images
                mean = sum(rank['losses'][step][key] for rank in ranks) / world
                _close(mean, value, atol)
    for rank in ranks:
        for key, weight in rank['weights'].items():
            _close(weight, expected['weights'][key], atol)
    _close(ranks[0]['logits'], expected['logits'], 10 * atol)


@pytest.mark.parametrize('world', WORLDS)
@pytest.mark.parametrize('name', HEADS)
def test_collectives_of_a_training_step(results, name, world):
    """Equal on every rank in kind, size and order; the same at every step but for the first use.

    The bank takes rank 0's value before its first use and after a load, and never otherwise.
    """
    logs = [rank[name]['log'] for rank in results[world]]
    assert all(log == logs[0] for log in logs)
    first, second, third = logs[0]
    broadcasts = [call for call in first if call[0] == 'broadcast']
    assert broadcasts
    assert first == broadcasts + second
    assert third == (first if name == 'head_wild_seed' else second)
    assert not any(call == 'broadcast' for call, _ in second)
    num_losses = 2
    assert len(second) <= (3 + 1) + 2 * num_losses + 1


@pytest.mark.parametrize('world', WORLDS)
def test_prediction_on_one_rank_alone_needs_nobody(results, world):
    for rank in results[world]:
        assert rank['fresh_prediction']['log'] == []
        assert all(rank[name]['log_of_prediction'] == [] for name in HEADS)


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


@pytest.mark.parametrize('world', [1, *WORLDS])
@pytest.mark.parametrize('name', mcibi_scenarios.HEADS)
def test_training_of_mcibi_is_that_of_one_process(results, one_process, name, world):
    """Losses, gradients and memory over DDP steps, the momentum annealed."""
    expected, ranks = one_process(name), [rank[name] for rank in results[world]]
    for step in range(4):
        for rank in ranks:
            assert torch.equal(rank['bank'][step], ranks[0]['bank'][step])
            assert torch.equal(rank['filled'][step], expected['filled'][step])
            for key, grad in rank['grads'][step].items():
                _close(grad, expected['grads'][step][key], 1e-9)
        _close(ranks[0]['bank'][step], expected['bank'][step], 1e-9)
        for key, value in expected['losses'][step].items():
            if key.startswith(('memory_', 'acc_memory', 'stat_')):  # global numbers
                for rank in ranks:
                    _close(rank['losses'][step][key], value, 1e-8)
            elif 'loss' in key:  # the host's: each rank's own images
                mean = sum(rank['losses'][step][key] for rank in ranks) / world
                _close(mean, value, 1e-9)
    logs = [rank['log'] for rank in ranks]
    assert all(log == logs[0] for log in logs)
    first, *others = logs[0]
    assert [call for call, _ in first[:3]] == ['broadcast'] * 3 * (world > 1)
    assert all([call for call, _ in log] == ['all_reduce'] * (world > 1) for log in others)
    assert expected['filled'][1].tolist() == [True, True, False, True, True]
    assert expected['filled'][2].all()
    momenta = [losses['stat_memory_momentum'].item() for losses in expected['losses']]
    assert momenta == sorted(momenta, reverse=True)
    assert len(set(momenta)) == 4


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
