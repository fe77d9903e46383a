"""The same global batch gives the same banks and CAR's losses in 1, 2 and 4 gloo processes.

Here a rank may have no pixel at all. Whole trainings: tests/guarantees/test_gpu_count.py.
"""

import os

import pytest
import torch

from tests.distributed import scenarios
from tests.distributed.launch import results_of_ranks

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or os.name != 'posix', reason='needs gloo and fork'
)
ATOL = {torch.float64: 1e-10, torch.float32: 1e-5}
WORLDS = pytest.mark.parametrize('world', [1, 2, 4])


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    """World size -> list of every rank's results."""
    return results_of_ranks(tmp_path_factory.mktemp('ranks'), 'tests.distributed.launch')


def _close(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=ATOL.get(expected.dtype, 0))


@WORLDS
@pytest.mark.parametrize('dtype', scenarios.DTYPES)
@pytest.mark.parametrize('name', scenarios.BANKS)
def test_a_bank_is_that_of_one_process(results, name, dtype, world):
    """Five steps; one process without a process group, here, is the reference."""
    expected = scenarios.bank_steps(0, 1, name, dtype)
    ranks = [rank[name][dtype] for rank in results[world]]
    for rank in ranks:
        for step, state in enumerate(expected['state']):
            for key, value in state.items():
                _close(rank['state'][step][key], value)
                assert torch.equal(rank['state'][step][key], ranks[0]['state'][step][key])
            _close(rank['counts'][step], expected['counts'][step])
        # one for each iteration of Sinkhorn and one packed sum, whatever the labels are
        calls = (4 if name.startswith('distributions') else 1) * (world > 1)
        assert rank['log'] == ranks[0]['log']
        assert [[call for call, _ in step] for step in rank['log']] == [['all_reduce'] * calls] * 5
    left_out = [float(counts[-1]) for counts in expected['counts']]
    assert [count > 0 for count in left_out] == [False, False, True, False, False]
    key = next(iter(expected['state'][0]))
    rows = torch.stack([state[key] for state in expected['state']]).flatten(2)
    assert (rows.diff(dim=0).abs().amax((1, 2)) > 1e-3).all()  # it does move, every step
    assert torch.equal(rows[0, 5], rows[-1, 5])  # the absent class


@WORLDS
@pytest.mark.parametrize('name', ['centers', *scenarios.CAR])
def test_losses_of_car_are_those_of_the_whole_batch(results, name, world):
    """Gradients are averaged over ranks, as DDP does."""
    expected = scenarios.car_losses(0, 1)[name]
    ranks = [rank['car'][name] for rank in results[world]]
    for rank in ranks:
        torch.testing.assert_close(rank['value'], expected['value'], rtol=0, atol=1e-11)
        torch.testing.assert_close(rank['grad'], expected['grad'], rtol=0, atol=1e-11)
        assert torch.equal(rank['value'], ranks[0]['value'])
        assert rank['log'] == ranks[0]['log']
        assert {call for call, _ in rank['log']} <= {'all_reduce'}
        most = 1 if 'CenterToCenter' in name else 2  # the centres', and that of a mean over pixels
        assert len(rank['log']) == (most if world > 1 else 0)
    assert expected['grad'].abs().max() > 1e-5


def test_the_batch_is_as_uneven_as_promised():
    """Otherwise the tests above would prove little."""
    for step in range(5):
        for labels in (scenarios.batch(step)[1], scenarios.batch(step)[1][:, ::3, ::3]):
            found = [set(image.unique().tolist()) - {255} for image in labels]
            assert not found[1]
            assert [2 in classes for classes in found] == [False] * 3 + [step >= 1]
            assert not any(5 in classes for classes in found)
            assert (labels == 4).sum() == 1
