"""What the oldest PyTorch of the tests, 2.1, cannot do and the pinned one can."""

import pytest
import torch
from packaging.version import Version

OLD_TORCH = Version(torch.__version__) < Version('2.6')

needs_export = pytest.mark.skipif(
    OLD_TORCH, reason='torch.export with dynamic sizes needs PyTorch 2.6'
)
# Before, CPUs have no float16: neither in autocast nor in convs.
HALVES = [
    torch.bfloat16,
    pytest.param(torch.float16, marks=pytest.mark.skipif(OLD_TORCH, reason='no float16 on CPUs')),
]


def for_training(heads):
    """Names of MMSegmentation's heads for parametrize, less what the old PyTorch can't train.

    DNLHead divides its weights in place, which the old one refuses in the backward pass; the head
    alone does so too.
    """
    refused = pytest.mark.skipif(OLD_TORCH, reason='needs a newer PyTorch in MMSegmentation')
    return [pytest.param(name, marks=refused) if name == 'DNLHead' else name for name in heads]
