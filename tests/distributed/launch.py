"""Run scenarios in 1, 2 and 4 processes: ``python -m tests.distributed.launch FOLDER [MODULE]``.

One interpreter imports everything once and forks the ranks before it computes anything, so six
ranks cost one import. Every rank writes FOLDER/<world size>_<rank>.pt, or its traceback.
"""

import importlib
import os
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import mmseg_cmdl  # noqa: F401

WORLD_SIZES = (1, 2, 4)
TIMEOUT = timedelta(seconds=120)


def _rank(scenarios, folder, rank, world):
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            'gloo',
            init_method=f'file://{folder}/store_{world}',
            rank=rank,
            world_size=world,
            timeout=TIMEOUT,
        )
        result = scenarios.run_all(rank, world)
        dist.barrier()
        dist.destroy_process_group()
        torch.save(result, folder / f'{world}_{rank}.pt')
    except BaseException:
        (folder / f'{world}_{rank}.error').write_text(traceback.format_exc())
        return 1
    return 0


def main(folder, module='tests.distributed.scenarios'):
    scenarios = importlib.import_module(module)
    for world in WORLD_SIZES:
        children = []
        for rank in range(world):
            pid = os.fork()
            if pid == 0:
                os._exit(_rank(scenarios, folder, rank, world))
            children.append(pid)
        statuses = [os.waitpid(pid, 0)[1] for pid in children]
        if any(statuses):
            return 1
    return 0


if __name__ == '__main__':
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
