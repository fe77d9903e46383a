"""What starts a job: finding files, naming them, starting ranks, a home folder for mim.

Mistakes on the command line end in a `SystemExit` with one message that names the file or option
and what to do; they are noticed before a model is built or a process group is started.
"""

import argparse
import atexit
import difflib
import os
import re
import shutil
import tempfile
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.runner import CheckpointLoader, find_latest_checkpoint

PACKAGE = Path(__file__).resolve().parent


def configs_folder() -> Path:
    """Folder of the shipped configs: in the wheel, or beside the package in a checkout."""
    inside = PACKAGE / '.mim' / 'configs'
    return inside if inside.is_dir() else PACKAGE.parent / 'configs'


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and testing have in common."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override settings of the config: model.decode_head.channels=64 '
        "train_dataloader.batch_size=4; lists as key=a,b or key='[a,b]', without spaces",
    )
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


def close_matches(path: str) -> list[str]:
    """Config files with a name like that of `path`: in its own folder and among the shipped ones.

    Alike means spelt alike, or made of the same words: config names are long, and one typed from
    memory is mostly too short.
    """
    wanted = Path(path)
    words = set(re.split('[_-]', wanted.stem))

    def likeness(file):
        spelling = difflib.SequenceMatcher(None, wanted.stem, file.stem).ratio()
        return max(spelling, len(words & set(re.split('[_-]', file.stem))) / len(words))

    found = {*wanted.parent.glob('*.py'), *configs_folder().glob('[!_]*/*.py')}
    ranked = sorted(found, key=lambda file: (-likeness(file), str(file)))
    return [str(file) for file in ranked if likeness(file) >= 0.6][:5]


def load_config(path: str, options=None, launcher: str = 'none') -> Config:
    """Read a config file and put command line overrides into it.

    Raises:
        SystemExit: if there is no such file; lists those with similar names.
    """
    if not os.path.isfile(path):
        matches = close_matches(path)
        hint = '; did you mean one of these?\n  ' + '\n  '.join(matches) if matches else ''
        raise SystemExit(f'error: there is no config file {path!r}{hint}')
    cfg = Config.fromfile(path)
    cfg.launcher = launcher
    if options is not None:
        cfg.merge_from_dict(options)
    return cfg


def set_work_dir(cfg: Config, work_dir, config_path: str) -> None:
    """Set cfg.work_dir: the command line's, else the config's, else work_dirs/<config name>."""
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = os.path.join('work_dirs', Path(config_path).stem)


def checked_checkpoint(path: str) -> str:
    """The path or URL of a checkpoint, checked as far as that costs nothing.

    Raises:
        SystemExit: if a local file is missing; lists the checkpoints beside it.
    """
    if '://' in path or os.path.isfile(path):
        return path
    folder = Path(path) if os.path.isdir(path) else Path(path).parent
    beside = sorted(folder.glob('*.pth'), key=os.path.getmtime, reverse=True)[:5]
    hint = (
        f'; {folder} has:\n  ' + '\n  '.join(map(str, beside))
        if beside
        else f'; {folder} has no .pth file'
    )
    raise SystemExit(f'error: there is no checkpoint file {path!r}{hint}')


def latest_checkpoint(work_dir: str):
    """The checkpoint to resume from in `work_dir`, None if nothing was saved there yet.

    The file `last_checkpoint` holds the absolute path at the time of saving; where the folder has
    been moved since, the file of that name in it is meant.

    Raises:
        SystemExit: if the checkpoint named there is gone.
    """
    if not os.path.isfile(os.path.join(work_dir, 'last_checkpoint')):
        return None
    named = find_latest_checkpoint(work_dir)
    moved = os.path.join(work_dir, os.path.basename(named))
    return moved if os.path.isfile(moved) else checked_checkpoint(named)


def prepare_home() -> None:
    """Make the folder that `mim` wants, before several `mim` start side by side.

    openmim 0.3.9 makes ~/.cache/mim when it is imported. That fails where another process is just
    making it, and where the home folder is missing or can't be written. In the latter case
    ``HOME`` becomes a temporary folder until this process ends, for it and for those it starts.
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


def take_up_seed(cfg: Config, checkpoint: str) -> None:
    """Give a resumed job that sets no seed the one that its first part drew.

    mmengine takes it from the checkpoint as well, but after the data loader has been built: the
    job would go on with images in another order and other augmentation.
    """
    if cfg.get('randomness', {}).get('seed') is not None:
        return
    meta = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu').get('meta', {})
    if meta.get('seed') is not None:
        cfg.randomness = dict(cfg.get('randomness', {}), seed=meta['seed'])


def start_ranks(cfg: Config, local_rank: int = 0) -> None:
    """Give every rank its local number, and start the process group where no GPU is.

    mmengine starts the group itself, but selects a CUDA device first and hands it to
    DistributedDataParallel, which on a machine without one fails with an obscure message. With the
    gloo backend everything else works there.

    Raises:
        SystemExit: if the config wants NCCL on a machine without GPU, or the launcher's
            environment variables are missing.
    """
    os.environ.setdefault('LOCAL_RANK', str(local_rank))
    if cfg.launcher != 'pytorch' or get_device() not in ('cpu', 'mps'):
        return
    missing = [
        key for key in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT') if key not in os.environ
    ]
    if missing:
        raise SystemExit(
            f'error: --launcher pytorch needs {", ".join(missing)} in the environment; start it '
            'with tools/dist_train.sh, tools/dist_test.sh or torchrun'
        )
    dist_cfg = dict(cfg.get('env_cfg', {}).get('dist_cfg', {}))
    backend = dist_cfg.setdefault('backend', 'nccl')
    if backend == 'nccl':
        raise SystemExit(
            'error: the backend nccl needs a GPU and PyTorch sees none; for ranks on CPUs add '
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
