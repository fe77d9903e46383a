"""Banks under PyTorch's FullyShardedDataParallel: whole, and equal on all ranks."""

import pytest
import torch

from tests.distributed import launch


def run(rank, world):
    """Two steps; buffers at the start and at the end, and what a full state dict holds."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    from tests.guarantees import cases

    found = {}
    for name in ('mdrl', 'mcibi'):
        model = cases.build(name)
        start = {key: value.clone() for key, value in cases.memory(model).items()}
        sharded = FullyShardedDataParallel(
            model, device_id=torch.device('cpu'), use_orig_params=True
        )
        optimizer = torch.optim.SGD(sharded.parameters(), lr=0.1)
        for iteration in range(2):
            images, samples = cases.batch(seed=iteration * world + rank)
            cases.objective(sharded(images, samples, mode='loss')).backward()
            optimizer.step()
            optimizer.zero_grad()
        found[name] = start, cases.memory(sharded)
    return found


@pytest.mark.long
def test_banks_are_whole_and_equal(tmp_path):
    assert launch.fork_ranks(run, tmp_path, worlds=(2,)) == 0, [
        path.read_text() for path in tmp_path.glob('*.error')
    ]
    first, second = (torch.load(tmp_path / f'2_{rank}.pt') for rank in range(2))
    for name, (start, end) in first.items():
        assert start.keys() == end.keys() != set()
        for key, value in end.items():
            assert value.shape == start[key].shape, (name, key)
            assert torch.equal(value, second[name][1][key]), (name, key)
        assert any(not torch.equal(value, start[key]) for key, value in end.items())
