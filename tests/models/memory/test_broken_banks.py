"""A bank that isn't finite, and shapes that don't fit one, are refused by name."""

import re

import pytest
import torch
from mmengine.runner.checkpoint import load_state_dict

from mmseg_cmdl import InputError
from mmseg_cmdl.models.memory import DistributionBank, FeatureBank, GaussianBank


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize(('bank', 'name', 'rows'), [
    (lambda: DistributionBank(4, 2, 3), 'distributions', 2),
    (lambda: FeatureBank(4, 3), 'features', 1),
])  # fmt: skip
def test_rows_that_are_not_finite_are_named(bank, name, rows, value):
    broken = bank().state_dict()
    broken[name].view(4, -1)[1, 0] = value
    model = torch.nn.Sequential(bank())
    before = getattr(model[0], name).clone()
    state = {f'0.{key}': item for key, item in broken.items()}
    # mmengine's, which only logs other errors, and PyTorch's
    for load in (lambda: load_state_dict(model, state, strict=False),
                 lambda: model.load_state_dict(state)):  # fmt: skip
        with pytest.raises(InputError, match=rf'0\.{name} .* 1 of 4 rows \(classes 1\)'):
            load()
    assert torch.equal(getattr(model[0], name), before)
    broken[name].view(4, -1)[1, 0] = 0.5
    model.load_state_dict({f'0.{key}': item for key, item in broken.items()})
    assert getattr(model[0], name).view(4, -1)[1, 0] == 0.5


@pytest.mark.parametrize('bank', [
    DistributionBank(3, 2, 6), FeatureBank(3, 6), GaussianBank(3, channels=6),
], ids=lambda bank: type(bank).__name__)  # fmt: skip
def test_shapes_are_checked(bank):
    """Before anything has moved; maps with their channels last are named as such."""
    options = [0.1] if isinstance(bank, FeatureBank) else []
    start = {key: value.clone() for key, value in bank.state_dict().items()}
    for vectors, labels in (
        ((2, 4, 4, 6), (2, 8, 8)), ((8, 6), (9,)), ((8, 5), (8,)), ((2, 6, 4, 4), (32,)),
        ((8,), (8,)), ((2, 6, 4, 4), (1, 8, 8)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=re.escape(f'got {list(vectors)} and {list(labels)}')):
            bank.update_(torch.randn(vectors), torch.zeros(labels, dtype=torch.int64), *options)
    with pytest.raises(ValueError, match='labels are whole numbers'):
        bank.update_(torch.randn(8, 6), torch.zeros(8), *options)
    for weights in ((1, 4, 2, 2), (3, 2, 2), (4, 3)):
        with pytest.raises(ValueError, match=re.escape(f'weights [B, 3, h, w], got {[*weights]}')):
            bank.vote(torch.rand(weights))
    with pytest.raises(ValueError, match=r'needs vectors \[..., 6\], got \[5, 7\]'):
        bank.similarity(torch.randn(5, 7))
    with pytest.raises(ValueError, match=r'of the same pixels, got \[5, 6\] and \[4\]'):
        bank.nearest(torch.randn(5, 6), torch.zeros(4, dtype=torch.int64))
    if isinstance(bank, DistributionBank):
        pixels = torch.randn(8, 6), torch.zeros(8, dtype=torch.int64)
        with pytest.raises(ValueError, match=r'similarity must be of the same 8 pixels, got \[7'):
            bank.update_(*pixels, similarity=torch.rand(7, 3, 2))
    assert all(torch.equal(value, start[key]) for key, value in bank.state_dict().items())
