"""Run scenarios in 1, 2 and 4 processes: ``python -m tests.distributed.launch FOLDER [MODULE]``.

One interpreter imports everything once and forks the ranks before it computes anything, so six
ranks cost one import. Every rank writes FOLDER/<world size>_<rank>.pt, or its traceback.
"""

import importlib
import os
import signal
import subprocess
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import mmseg_cmdl  # noqa: F401
from tests.paths import FORKS

WORLD_SIZES = (1, 2, 4)
TIMEOUT = timedelta(seconds=120)


def _rank(run, folder, rank, world, timeout):
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            'gloo',
            init_method=f'file://{folder}/store_{world}',
            rank=rank,
            world_size=world,
            timeout=timeout,
        )
        result = run(rank, world)
        dist.barrier()
        dist.destroy_process_group()
        torch.save(result, folder / f'{world}_{rank}.pt')
    except BaseException:
        (folder / f'{world}_{rank}.error').write_text(traceback.format_exc())
        return 1
    return 0


def fork_ranks(run, folder, worlds=WORLD_SIZES, timeout=TIMEOUT):
    """`run(rank, world)` in every rank of each world, one world after the other; exit status."""
    for world in worlds:
        children = []
        for rank in range(world):
            pid = os.fork()
            if pid == 0:
                os._exit(_rank(run, folder, rank, world, timeout))
            children.append(pid)
        statuses = [os.waitpid(pid, 0)[1] for pid in children]
        if any(statuses):
            return 1
    return 0


def results_of_ranks(folder, module, *arguments, worlds=WORLD_SIZES, timeout=400):
    """World size -> list of every rank's results of ``python -m MODULE FOLDER ARGUMENT ...``."""
    path = os.pathsep.join(filter(None, sys.path))
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=path, **FORKS)
    process = subprocess.Popen(
        [sys.executable, '-m', module, str(folder), *arguments],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output = process.communicate()[0] + '\nno answer: a collective that some rank never enters?'
    errors = [f'{path.stem}: {path.read_text()}' for path in sorted(folder.glob('*.error'))]
    if process.returncode or errors:
        pytest.fail('\n'.join([output[-3000:], *errors]), pytrace=False)
    return {
        world: [torch.load(folder / f'{world}_{rank}.pt') for rank in range(world)]
        for world in worlds
    }


if __name__ == '__main__':
    name, *_ = (*sys.argv[2:], 'tests.distributed.scenarios')
    sys.exit(fork_ranks(importlib.import_module(name).run_all, Path(sys.argv[1])))
