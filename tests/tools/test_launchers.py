"""The shell launchers: what they run, from where, and two real ranks on CPUs."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config

from mmseg_cmdl import launch
from mmseg_cmdl.errors import InputError
from tests.paths import PACKAGE, TOOLS, child_environment, free_port, python

pytestmark = pytest.mark.skipif(sys.platform == 'win32', reason='bash scripts')

SCRIPTS = {
    'dist_train.sh': ['my config.py', '2'],
    'dist_test.sh': ['my config.py', 'my weights.pth', '2'],
    'slurm_train.sh': ['partition', 'job', 'my config.py'],
    'slurm_test.sh': ['partition', 'job', 'my config.py', 'my weights.pth'],
}


def bash(script, *arguments, cwd, **variables):
    """Run a launcher from `cwd`, without the variables that would change what it does."""
    environment = child_environment()
    for name in ('NNODES', 'NODE_RANK', 'MASTER_ADDR', 'MASTER_PORT', 'PORT', 'GPUS', 'SRUN_ARGS'):
        environment.pop(name, None)
    return subprocess.run(
        ['bash', str(TOOLS / script), *arguments],
        cwd=cwd,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def echo(tmp_path):
    """A program that prints its arguments, the path and the port it was given, as JSON."""
    program = tmp_path / 'echo'
    program.write_text(
        f'#!{sys.executable}\n'
        'import json, os, sys\n'
        'names = ("PYTHONPATH", "MASTER_PORT")\n'
        'print(json.dumps([sys.argv[1:], {name: os.environ.get(name) for name in names}]))\n'
    )
    program.chmod(0o755)
    return program


@pytest.mark.parametrize('script', SCRIPTS)
def test_too_few_arguments_print_the_usage(script, tmp_path):
    needed = SCRIPTS[script]
    done = bash(script, *needed[:-1], cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ''
    words = {'partition': 'PARTITION', 'job': 'JOB_NAME', 'my config.py': 'CONFIG', '2': 'GPUS'}
    expected = ' '.join(words.get(word, 'CHECKPOINT') for word in needed)
    assert f'{script} {expected} [options of {script[:-3].split("_")[1]}.py ...]' in done.stderr


@pytest.mark.parametrize('kind', ['train', 'test'])
def test_torchrun_gets_the_cluster_and_every_option(kind, tmp_path, echo):
    arguments = SCRIPTS[f'dist_{kind}.sh']
    more = ['--cfg-options', 'a=1', "b='two words'"]
    done = bash(f'dist_{kind}.sh', *arguments, *more, cwd=tmp_path, PYTHON=str(echo))
    assert done.returncode == 0, done.stderr
    command, _ = json.loads(done.stdout)
    files = arguments[:-1]
    after = [str(TOOLS / f'{kind}.py'), *files, '--launcher', 'pytorch', *more]
    assert command == [
        '-m', 'torch.distributed.run', '--nnodes=1', '--node_rank=0', '--master_addr=127.0.0.1',
        '--master_port=29500', '--nproc_per_node=2', *after,
    ]  # fmt: skip
    done = bash(
        f'dist_{kind}.sh', *arguments, cwd=tmp_path, PYTHON=str(echo), NNODES='3', NODE_RANK='1',
        MASTER_ADDR='10.0.0.1', PORT='1234',
    )  # fmt: skip
    command, _ = json.loads(done.stdout)
    assert command[2:7] == [
        '--nnodes=3', '--node_rank=1', '--master_addr=10.0.0.1', '--master_port=1234',
        '--nproc_per_node=2',
    ]  # fmt: skip


@pytest.mark.parametrize('kind', ['train', 'test'])
def test_srun_gets_the_resources_and_every_option(kind, tmp_path, echo):
    echo.rename(tmp_path / 'srun')
    arguments = SCRIPTS[f'slurm_{kind}.sh']
    path = f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'
    done = bash(
        f'slurm_{kind}.sh', *arguments, '--work-dir', 'my job', cwd=tmp_path, PATH=path, GPUS='16',
        GPUS_PER_NODE='8', CPUS_PER_TASK='3', SRUN_ARGS='--exclusive --time=10', PORT='1234',
        PYTHON='python3',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    command, variables = json.loads(done.stdout)
    assert command == [
        '-p', 'partition', '--job-name=job', '--gres=gpu:8', '--ntasks=16', '--ntasks-per-node=8',
        '--cpus-per-task=3', '--kill-on-bad-exit=1', '--exclusive', '--time=10', 'python3', '-u',
        str(TOOLS / f'{kind}.py'), *arguments[2:], '--launcher', 'slurm', '--work-dir', 'my job',
    ]  # fmt: skip
    assert variables['MASTER_PORT'] == '1234'


def test_checkout_is_importable_and_an_install_is_left_alone(tmp_path, echo):
    done = bash('dist_train.sh', 'c.py', '1', cwd=tmp_path, PYTHON=str(echo), PYTHONPATH='/mine')
    _, variables = json.loads(done.stdout)
    if TOOLS.parent.name == '.mim':
        assert variables['PYTHONPATH'] == '/mine'
    else:
        first, second = variables['PYTHONPATH'].split(os.pathsep)
        assert os.path.samefile(first, PACKAGE.parent)
        assert second == '/mine'


def test_exit_code_of_a_failed_run_is_kept(tmp_path):
    program = tmp_path / 'fails'
    program.write_text('#!/bin/sh\nexit 7\n')
    program.chmod(0o755)
    assert bash('dist_train.sh', 'c.py', '1', cwd=tmp_path, PYTHON=str(program)).returncode == 7


@pytest.mark.slow
def test_two_ranks_on_cpus(tiny_config, tmp_path):
    """Train on two processes, test on two and on one: one history, one answer."""
    gloo = ['--cfg-options', 'env_cfg.dist_cfg.backend=gloo']
    variables = {'PYTHON': sys.executable, 'CUDA_VISIBLE_DEVICES': ''}
    done = bash(
        'dist_train.sh', tiny_config.name, '2', '--work-dir', 'job', *gloo,
        cwd=tiny_config.parent, PORT=str(free_port()), **variables,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'Distributed launcher: pytorch' in done.stdout + done.stderr
    assert re.search(r'GPU number: 2', done.stdout + done.stderr)
    checkpoint = torch.load(tmp_path / 'job' / 'iter_4.pth')
    assert len(checkpoint['message_hub']['log_scalars']['train/loss'].data[0]) == 4

    done = bash(
        'dist_test.sh', tiny_config.name, 'job/iter_4.pth', '2', '--work-dir', 'two', '--out',
        'out', *gloo, cwd=tiny_config.parent, PORT=str(free_port()), **variables,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    # Each rank predicted one of the two images.
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['0.png', '1.png']
    single = [TOOLS / 'test.py', tiny_config.name, 'job/iter_4.pth', '--work-dir', 'one']
    alone = python(*single, cwd=tiny_config.parent, CUDA_VISIBLE_DEVICES='')
    assert alone.returncode == 0, alone.stderr[-3000:]
    two, one = (
        json.loads(next((tmp_path / name).glob('*/*.json')).read_text()) for name in ('two', 'one')
    )
    assert {key: two[key] for key in ('aAcc', 'mIoU', 'mAcc')} == {
        key: one[key] for key in ('aAcc', 'mIoU', 'mAcc')
    }


# ------------------------------------------------------------- before the ranks are started


@pytest.fixture
def on_cpus(monkeypatch, no_launcher):
    """As on a machine without GPU, with no launcher's variables set."""
    monkeypatch.setattr(launch, 'get_device', lambda: 'cpu')
    started = []
    monkeypatch.setattr(
        torch.distributed, 'init_process_group', lambda **options: started.append(options)
    )
    return started


def test_launcher_without_its_variables(on_cpus, monkeypatch):
    monkeypatch.setenv('RANK', '0')
    with pytest.raises(InputError, match='needs WORLD_SIZE, MASTER_ADDR, MASTER_PORT in the envir'):
        launch.start_ranks(Config(dict(launcher='pytorch')))
    assert on_cpus == []


def test_nccl_without_a_gpu_names_gloo(on_cpus, monkeypatch):
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.setenv(name, '1')
    for cfg in (dict(), dict(env_cfg=dict(dist_cfg=dict(backend='nccl')))):
        with pytest.raises(InputError, match=r'add --cfg-options env_cfg\.dist_cfg\.backend=gloo'):
            launch.start_ranks(Config(dict(launcher='pytorch', **cfg)))
    assert on_cpus == []


def test_cpu_ranks_keep_the_configs_wrapper(on_cpus, monkeypatch):
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.setenv(name, '1')
    base = dict(launcher='pytorch', env_cfg=dict(dist_cfg=dict(backend='gloo')))
    cfg = Config(dict(**base, find_unused_parameters=True))
    launch.start_ranks(cfg, 1)
    assert cfg.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=True,
        device_ids=None,
    )
    cfg = Config(dict(**base, model_wrapper_cfg=dict(type='Mine', static_graph=True)))
    launch.start_ranks(cfg, 1)
    assert cfg.model_wrapper_cfg == dict(type='Mine', static_graph=True, device_ids=None)
    assert on_cpus == [dict(backend='gloo')] * 2


@pytest.mark.parametrize('launcher', ['none', 'slurm', 'mpi'])
def test_other_launchers_are_left_to_mmengine(on_cpus, launcher):
    cfg = Config(dict(launcher=launcher))
    launch.start_ranks(cfg)
    assert on_cpus == []
    assert 'model_wrapper_cfg' not in cfg
