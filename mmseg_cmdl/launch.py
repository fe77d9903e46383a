"""What starts a run: options of the launcher, work dir, ranks, and a home folder for mim."""

import argparse
import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import Optional

import torch
from mmengine.config import Config
from mmengine.device import get_device

from .checkpoint_file import read_state
from .config_overrides import add_overrides
from .errors import InputError
from .written_files import make_folder


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and testing have in common."""
    add_overrides(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes of a distributed run (default: %(default)s)',
    )
    # torch.distributed.launch passes the first spelling before PyTorch 2.0, the second one since.
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help='set by the launcher'
    )


def set_work_dir(cfg: Config, work_dir: Optional[str], config_path: str) -> None:
    """Set cfg.work_dir: the command line's, else the config's, else work_dirs/<config name>.

    Raises:
        InputError: The folder can't be made or written to.
    """
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = os.path.join('work_dirs', Path(config_path).stem)
    make_folder(cfg.work_dir)


def take_up_seed(cfg: Config, checkpoint: str) -> None:
    """Give a resumed job that sets no seed the random seed of its first part.

    mmengine takes it from the checkpoint too, but only after the data loader has been built: the
    job would go on with images in another order and with other augmentation.
    """
    if cfg.get('randomness', {}).get('seed') is not None:
        return
    meta = read_state(checkpoint)[0].get('meta', {})
    if meta.get('seed') is not None:
        cfg.randomness = dict(cfg.get('randomness', {}), seed=meta['seed'])


def prepare_home() -> None:
    """Make the folder that `mim` wants, before several `mim` start side by side.

    openmim 0.3.9 makes ~/.cache/mim when it is imported. That fails if another process makes it at
    the same moment, and if the home folder is missing or can't be written to. In the latter case
    ``HOME`` becomes a temporary folder for this process and those it starts, until it ends.
    """
    home = os.path.expanduser('~')
    try:
        if not os.path.isabs(home):  # HOME is not set, and the user has no name
            raise FileNotFoundError(home)
        os.makedirs(os.path.join(home, '.cache', 'mim'), exist_ok=True)
    except OSError:
        os.environ['HOME'] = tempfile.mkdtemp(prefix='mmseg_cmdl_home_')
        atexit.register(shutil.rmtree, os.environ['HOME'], ignore_errors=True)
        os.makedirs(os.path.join(os.environ['HOME'], '.cache', 'mim'))


def start_ranks(cfg: Config, local_rank: int = 0) -> None:
    """Set each rank's local number, and start the process group on a machine without a GPU.

    mmengine starts the group itself, but selects a CUDA device first and passes it to
    DistributedDataParallel, which fails with an obscure message on a machine without one. With the
    gloo backend everything else works there.

    Raises:
        InputError: The config wants NCCL on a machine without GPU, or the launcher's environment
            variables are missing.
    """
    os.environ.setdefault('LOCAL_RANK', str(local_rank))
    if cfg.launcher != 'pytorch' or get_device() not in ('cpu', 'mps'):
        return
    missing = [
        key for key in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT') if key not in os.environ
    ]
    if missing:
        raise InputError(
            f'--launcher pytorch needs {", ".join(missing)} in the environment; start it '
            'with tools/dist_train.sh, tools/dist_test.sh or torchrun'
        )
    dist_cfg = dict(cfg.get('env_cfg', {}).get('dist_cfg', {}))
    backend = dist_cfg.setdefault('backend', 'nccl')
    if backend == 'nccl':
        raise InputError(
            'the backend nccl needs a GPU and PyTorch sees none; for ranks on CPUs add '
            '--cfg-options env_cfg.dist_cfg.backend=gloo'
        )
    torch.distributed.init_process_group(**dist_cfg)
    wrapper = cfg.get('model_wrapper_cfg') or dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)


def finish_ranks() -> None:
    """Leave the process group, if there is one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
