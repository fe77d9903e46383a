"""``python -m mmseg_cmdl``: the versions found, and whether each way of using the package works.

It runs in any environment, also one in which importing mmseg_cmdl fails: that is what it is for.
``python -m mmseg_cmdl config`` lists the shipped configs or writes one of them to a file.
"""

import argparse
import importlib
import platform
import sys
import warnings
from pathlib import Path
from typing import Callable, Iterator, Optional, Sequence, Tuple

PACKAGE = Path(__file__).resolve().parent


def _attempt(function: Callable) -> tuple:
    """(result, None) or (None, the error as one line)."""
    try:
        return function(), None
    except Exception as error:  # any failure of a broken environment is a finding here
        return None, f'{type(error).__name__}: {" ".join(str(error).split())}'


def versions() -> Iterator[Tuple[str, str, str]]:
    """Yield (package, version found or what is wrong, versions supported)."""
    from . import environment, version

    yield 'mmseg_cmdl', f'{version.__version__} in {PACKAGE}', ''
    yield 'python', platform.python_version(), ''
    found, error = _attempt(environment.family)
    yield 'family', found or error or 'neither OpenMMLab nor its maintained fork (onedl)', ''
    supported, _ = _attempt(environment.required)
    for module in ('torch', 'mmengine', 'mmcv', 'mmseg'):
        found, error = _attempt(lambda module=module: environment.version_of(module))
        yield module, found or error or 'not installed', (supported or {}).get(module, '')
    opencv = ('opencv-python', 'opencv-python-headless')
    for distribution in ('setuptools', 'numpy', *opencv, 'openmim'):
        found = environment.distribution_version(distribution)
        if found:
            yield distribution, found, ''


def import_works() -> Tuple[bool, str]:
    """Whether the package imports and registers its parts."""
    import mmseg_cmdl

    _, error = _attempt(mmseg_cmdl.register)
    if error is None:
        return True, 'heads, losses and datasets are registered with MMSegmentation'
    return False, error.split(': ', 1)[1] if error.startswith('ImportError: ') else error


def mim_works() -> Tuple[bool, str]:
    """Whether ``mim train mmseg_cmdl`` finds openmim, our tools and our configs."""
    _, error = _attempt(lambda: importlib.import_module('mim.commands.train'))
    if error is not None and "'pip'" in error:
        return False, f'{error}, which mim needs; run: python -m ensurepip'
    if error is not None:
        return False, (
            f'{error}; run: pip install "mmseg_cmdl[mim]" && pip install --no-deps openmim'
        )
    if not (PACKAGE / '.mim' / 'tools' / 'train.py').is_file():
        return False, (
            'this is a checkout or an editable install, in which mim finds no tools and configs; '
            'run: pip install . (not -e), or use tools/train.py'
        )
    return True, f'mim train mmseg_cmdl CONFIG; configs in {PACKAGE / ".mim" / "configs"}'


def compiled_ops_work() -> Tuple[bool, str]:
    """Whether mmcv has its compiled ops; most models do without."""
    from . import compat, environment

    without, error = _attempt(compat.stand_in_for_mmcv_ext)
    if error is not None:
        return False, error
    if without:
        return False, (
            'mmcv-lite has none, and models that need none work (all shipped configs do); for '
            f'PSAHead or deformable convolution run: {environment.compiled_mmcv_command()}'
        )
    return True, 'mmcv._ext loads'


def cuda_works() -> Tuple[bool, str]:
    """Whether PyTorch sees a CUDA device."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return True, ', '.join(names)
    if torch.version.cuda is None and torch.version.hip is None:
        return False, (
            'this PyTorch is built for CPUs only; with a GPU, install the build that '
            'pytorch.org/get-started names for its driver'
        )
    return False, f'built for CUDA {torch.version.cuda}, but no device is seen; look at nvidia-smi'


def distributed_works() -> Tuple[bool, str]:
    """Whether ranks can talk to each other, and through what."""
    from torch import distributed

    if not distributed.is_available():
        return False, 'this PyTorch is built without torch.distributed'
    backends = [name for name in ('nccl', 'gloo', 'mpi') if distributed.is_backend_available(name)]
    return bool(backends), ' and '.join(backends) + ('' if 'nccl' in backends else ' (CPU ranks)')


WAYS = {
    'import': import_works,
    'mim': mim_works,
    'compiled mmcv': compiled_ops_work,
    'CUDA': cuda_works,
    'distributed': distributed_works,
}


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m mmseg_cmdl',
        description='Without a command: the versions found, and what works with them.',
    )
    commands = parser.add_subparsers(dest='command')
    config = commands.add_parser(
        'config', help='list the shipped configs, or write one of them to a file of its own'
    )
    config.add_argument('name', nargs='?', help='of a shipped config; without it, list them all')
    config.add_argument('--out', help='file to write (default: the name in the current folder)')
    args = parser.parse_args(argv)
    if args.command == 'config' and args.out and not args.name:
        config.error('--out needs the name of a shipped config')
    return args


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Print the report, or do what the command says. Returns the exit code."""
    args = parse_args(argv)
    if args.command == 'config':
        return write_or_list(args.name, args.out)
    report()
    return 0


def write_or_list(name: Optional[str], out: Optional[str]) -> int:
    """The command `config`."""
    import mmseg_cmdl

    from .errors import InputError

    try:
        mmseg_cmdl.register()  # MMSegmentation can't be imported before it, see compat
        from . import shipped_configs

        if name is None:
            print('\n'.join(shipped_configs.config_names()))
            return 0
        written = shipped_configs.write_config(name, out or f'{Path(name).stem}.py')
    except (ImportError, InputError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f"wrote {written}; build on it with _base_ = './{written.name}'")
    return 0


def report() -> None:
    """Print the report. It is a description, not a test."""
    from . import environment

    print('versions')
    for name, found, supported in versions():
        print(f'  {name:24}{found}' + (f'  (supported: {supported})' if supported else ''))
    for sentence in _attempt(environment.doubled)[0] or []:
        print(f'  {sentence}')
    print('\nwhat works')
    for name, works in WAYS.items():
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            outcome, error = _attempt(works)
        yes, text = outcome or (False, error)
        print(f'  {name:16}{"yes" if yes else "no "}  {text}')


if __name__ == '__main__':
    sys.exit(main())
