"""What a home folder that is new, missing or read-only does to mim: nothing."""

import importlib.util
import os
from pathlib import Path

import pytest

from mmseg_cmdl import launch
from tests.paths import python


def test_the_folder_that_mim_wants_is_there_before_mim_starts(tmp_path, monkeypatch):
    """Two `mim` that find no folder both make it, and the second one fails."""
    monkeypatch.setenv('HOME', str(tmp_path / 'new'))
    launch.prepare_home()
    assert os.environ['HOME'] == str(tmp_path / 'new')
    assert (tmp_path / 'new' / '.cache' / 'mim').is_dir()
    launch.prepare_home()  # a second time, with the folder there


def test_without_a_home_mim_gets_one_until_the_process_ends(tmp_path):
    if importlib.util.find_spec('mim') is None:  # not imported here: it wants setuptools first
        pytest.skip('openmim is not installed')
    (tmp_path / 'file').touch()  # below a file nobody, not even root, can make a folder
    cache = 'from mim.utils.default import DEFAULT_CACHE_DIR as cache; print(cache)'
    code = (
        'import os, subprocess, sys; from mmseg_cmdl.launch import prepare_home; prepare_home(); '
        'print(os.environ["HOME"], flush=True); '
        f'subprocess.run([sys.executable, "-c", {cache!r}], check=True)'
    )
    done = python('-c', code, cwd=tmp_path, HOME=str(tmp_path / 'file' / 'home'))
    assert done.returncode == 0, done.stderr
    # the maintained fork's packages may print that a module isn't there
    home, cache = (Path(line) for line in done.stdout.splitlines() if line.startswith('/'))
    assert cache == home / '.cache' / 'mim'  # made by us: mim did not stumble
    assert not home.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['file']


def test_a_user_without_a_name_and_a_home_gets_one(tmp_path, monkeypatch):
    """There `~` stays `~`, and mim would make a folder of that name where it is started."""
    monkeypatch.setenv('HOME', 'unset')
    monkeypatch.setattr(os.path, 'expanduser', lambda path: path)
    monkeypatch.chdir(tmp_path)
    launch.prepare_home()
    assert (Path(os.environ['HOME']) / '.cache' / 'mim').is_dir()
    assert not list(tmp_path.iterdir())
