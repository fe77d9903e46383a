"""Settings of the tests of small modules."""

import importlib

import pytest
import torch


@pytest.fixture(autouse=True, scope='package')
def one_thread():
    """Operations this small take several times longer when two threads share them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_cpu_shortcuts(monkeypatch):
    """Takes the ways that other devices than CPUs take, on a CPU."""
    for name, shortcut in (
        ('max_over_middle', '_pooling_is_faster'),
        ('row_sums', '_sorting_is_faster'),
    ):
        # the package offers the functions under their modules' names
        module = importlib.import_module(f'mmseg_cmdl.utils.{name}')
        monkeypatch.setattr(module, shortcut, lambda values: False)
