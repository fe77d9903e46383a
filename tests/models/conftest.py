"""Settings of the tests of small modules."""

import pytest
import torch


@pytest.fixture(autouse=True, scope='package')
def one_thread():
    """Operations this small take several times longer when two threads share them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
