"""Runs the package through the doors that users have, in a process of its own."""

import json
import subprocess
import sys
import time
from pathlib import Path

from mmseg_cmdl.shipped_configs import configs_folder
from tests.paths import INSTALLED, TOOLS, child_environment


def config(name):
    return configs_folder() / name


def run(command, folder, **variables):
    """Run a command in `folder`; its output, or a failure with the end of it."""
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, env={**child_environment(), **variables},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=1800,  # of a command that hangs, not of a busy machine
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def through_mim(verb, *arguments, folder):
    """`mim VERB mmseg_cmdl` where the package is installed, else the tool that mim would run."""
    if INSTALLED:
        door = [Path(sys.executable).with_name('mim'), verb, 'mmseg_cmdl']
        gpus = ['--gpus', 0]
    else:
        door, gpus = [sys.executable, TOOLS / f'{verb}.py'], []
        if verb == 'test':  # mim takes the checkpoint as an option, the tool as a place
            arguments = [word for word in arguments if word != '--checkpoint']
    return run([*door, *arguments[:1], *gpus, *arguments[1:]], folder)


def wait_until(condition, seconds=300):
    """Wait for what another process does; a failure where it doesn't."""
    end = time.time() + seconds
    while not condition():
        assert time.time() < end
        time.sleep(0.05)


def scalars(work_dir):
    """Records of all runs in a work dir, in the order in which they were started."""
    files = sorted(work_dir.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]
