"""What all tests of the guarantees share."""

import pytest
import torch
from mmengine.config import Config


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    """Maps this small are slower on two threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def quick_runner(monkeypatch):
    """A Runner without what takes seconds: compilers' versions, a config laid out by yapf."""
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)
    monkeypatch.setattr(Config, 'pretty_text', property(str))
