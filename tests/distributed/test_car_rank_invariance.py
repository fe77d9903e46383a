"""Centres, losses and gradients of CAR in 1, 2 and 4 gloo processes."""

import os

import pytest
import torch

from tests.distributed import car_scenarios
from tests.distributed.launch import results_of_ranks

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or os.name != 'posix', reason='needs gloo and fork'
)
WORLDS = [1, 2, 4]
SPLITS = ['even', 'empty']
NAMES = ['centers', *car_scenarios.LOSSES]


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    """World size -> list of every rank's results."""
    return results_of_ranks(
        tmp_path_factory.mktemp('car_ranks'),
        'tests.distributed.launch',
        'tests.distributed.car_scenarios',
    )


@pytest.fixture(scope='module')
def expected():
    """One process without a process group."""
    return car_scenarios.centers_and_losses(0, 1, 'even')


def _close(got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize('world', WORLDS)
@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize('name', NAMES)
def test_value_and_feature_gradient_are_those_of_the_whole_batch(
    results, expected, name, split, world
):
    ranks = [rank[split][name] for rank in results[world]]
    for rank in ranks:
        _close(rank['value'], expected[name]['value'])
        assert torch.equal(rank['value'], ranks[0]['value'])
    # the pixels of each rank, put back into the order of the whole batch
    sizes = [len(features) for features, _ in car_scenarios.blocks()]
    grads = {}
    for which, rank in zip(car_scenarios.SPLITS[world][split], ranks):
        grads.update(zip(which, rank['grad'].split([sizes[i] for i in which])))
    grad = torch.cat([grads[i] for i in range(4)])
    _close(grad, expected[name]['grad'])
    assert expected[name]['grad'].abs().max() > 1e-5


@pytest.mark.parametrize('world', WORLDS)
@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize('name', NAMES)
def test_collectives_are_few_and_equal_on_all_ranks(results, name, split, world):
    logs = [rank[split][name]['log'] for rank in results[world]]
    assert all(log == logs[0] for log in logs)
    assert {call for call, _ in logs[0]} <= {'all_reduce'}
    assert len(logs[0]) == (0 if world == 1 else 1 if name == 'centers' or 'c2c' in name else 2)


def test_blocks_hold_what_they_promise():
    labels = [set(labels.tolist()) - {255} for _, labels in car_scenarios.blocks()]
    assert labels[1] == set()
    assert labels[2] == {2}
    assert all(2 not in labels[i] for i in (0, 1, 3))
    assert not any(4 in x for x in labels)
    assert sum((block == 5).sum() for _, block in car_scenarios.blocks()) == 1
