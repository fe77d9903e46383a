"""Where things are, for tests that start other processes."""

import importlib.util
import itertools
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import mmseg_cmdl

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(mmseg_cmdl.__file__).resolve().parent
INSTALLED = (PACKAGE / '.mim').is_dir()
# The tools that belong to the package under test: the installed ones if there are any.
TOOLS = PACKAGE / '.mim' / 'tools' if INSTALLED else ROOT / 'tools'

# Without it PyTorch starts CUDA to see whether there is a device, and a process that is forked then
# has none.
FORKS = {'PYTORCH_NVML_BASED_CUDA_CHECK': '1'}


_number = itertools.count()


def load_script(path):
    """A tool, or any Python file of no package, as a module of a name of its own.

    Under that name worker processes find its functions.
    """
    spec = importlib.util.spec_from_file_location(f'script{next(_number)}_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def child_environment(*first_on_path):
    """Environment for a child process that imports the same mmseg_cmdl as the tests do."""
    path = [*map(str, first_on_path), str(PACKAGE.parent)]
    return {**os.environ, 'PYTHONPATH': os.pathsep.join(path), 'OMP_NUM_THREADS': '1', **FORKS}


def launcher_environment():
    """Environment of dist_train.sh and its like on this machine alone, with a port of its own."""
    environment = child_environment()
    for variable in ('NNODES', 'NODE_RANK', 'MASTER_ADDR'):
        environment.pop(variable, None)
    path = os.pathsep.join(filter(None, sys.path))
    return {**environment, 'PYTHON': sys.executable, 'PYTHONPATH': path, 'PORT': str(free_port())}


def python(*words, cwd=None, first_on_path=(), **variables):
    """Run Python in a process that imports the same mmseg_cmdl as the tests do."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        # Python puts the working folder first on the path, and here that is the checkout.
        cwd=cwd or tempfile.gettempdir(),
        env={**child_environment(*first_on_path), **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


def free_port():
    """A port on which nobody listens right now."""
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]
