"""Banks under PyTorch's FullyShardedDataParallel and mmengine's strategies: whole, equal."""

import os

import pytest
import torch
from mmengine.config import Config

from mmseg_cmdl.checkpoint_file import read_state
from mmseg_cmdl.data_guard import guard_data
from tests import tiny
from tests.distributed import launch
from tests.guarantees import cases


def run(rank, world):
    """Two steps; buffers at the start and at the end, and what a full state dict holds."""
    from torch.distributed.fsdp import FullyShardedDataParallel

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


# On CPUs: the device is told, as mmengine gives the number of a GPU; the state dict is that of each
# rank, as PyTorch's whole one of a CPU reads memory that has been given back (any model).
STRATEGIES = {
    'FSDPStrategy': dict(
        model_wrapper=dict(
            type='MMFullyShardedDataParallel', device_id=torch.device('cpu'), use_orig_params=True
        ),
        state_dict_cfg='local',
    ),
    'DDPStrategy': dict(
        model_wrapper=dict(
            type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False
        )
    ),
}


def flexible_job(config, work_dir, name, **options):
    """A config of FlexibleRunner for the tiny job with the model of a case."""
    cfg = Config.fromfile(config)
    model = cases.model_config(name, num_classes=len(tiny.CLASSES))
    model['data_preprocessor'] = cfg.model.data_preprocessor.to_dict()
    cfg.model = model
    cfg.merge_from_dict(dict(
        runner_type='FlexibleRunner', work_dir=str(work_dir), experiment_name=work_dir.name,
        **options,
    ))  # fmt: skip
    cfg.visualizer.name = work_dir.name
    return cfg


def train_by_strategies(rank, world, folder):
    from mmengine.runner import FlexibleRunner

    Config.pretty_text = property(str)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    found = {}
    for strategy, options in STRATEGIES.items():
        cfg = flexible_job(
            folder / 'tiny.py', folder / strategy, 'mdrl', launcher='pytorch',
            strategy=dict(type=strategy, **options),
        )  # fmt: skip
        runner = FlexibleRunner.from_cfg(cfg)
        guard_data(runner, 'train', 'val')
        runner.train()
        found[strategy] = type(runner.model).__name__, cases.memory(runner.model.module)
    return found


@pytest.mark.long
def test_strategies_of_flexible_runner(tiny_data, tmp_path):
    """Train, validate and save by two ranks."""
    tiny.write_config(tmp_path / 'tiny.py', tiny_data)
    status = launch.fork_ranks(
        lambda rank, world: train_by_strategies(rank, world, tmp_path), tmp_path, worlds=(2,)
    )
    assert status == 0, [path.read_text() for path in tmp_path.glob('*.error')]
    first, second = (torch.load(tmp_path / f'2_{rank}.pt') for rank in range(2))
    banks = {}
    for strategy, wrapper in (
        ('FSDPStrategy', 'MMFullyShardedDataParallel'), ('DDPStrategy', 'MMDistributedDataParallel')
    ):  # fmt: skip
        (name, bank), (_, other) = first[strategy], second[strategy]
        assert name == wrapper
        assert bank['decode_head.bank.distributions'].shape == (3, 3, 8)
        assert bank['decode_head.bank.num_updates'] == 4
        assert all(torch.equal(value, other[key]) for key, value in bank.items())
        banks[strategy] = bank['decode_head.bank.distributions']
    saved = tmp_path / 'FSDPStrategy' / 'iter_4.pth'
    assert {path.name for path in saved.iterdir()} == {'rank0.pth', 'rank1.pth'}
    _, state = read_state(tmp_path / 'DDPStrategy' / 'iter_4.pth')
    assert torch.equal(state['decode_head.bank.distributions'], banks['DDPStrategy'])
    torch.testing.assert_close(banks['FSDPStrategy'], banks['DDPStrategy'])


def test_deepspeed_that_is_not_installed_is_named(tiny_data, tmp_path):
    from mmengine._strategy import deepspeed
    from mmengine.runner import FlexibleRunner

    if deepspeed.deepspeed is not None:
        pytest.skip('it is installed')
    config = tiny.write_config(tmp_path / 'tiny.py', tiny_data)
    cfg = flexible_job(config, tmp_path / 'work', 'mdrl', strategy=dict(type='DeepSpeedStrategy'))
    with pytest.raises(AssertionError, match='DeepSpeed is not installed'):
        FlexibleRunner.from_cfg(cfg)
