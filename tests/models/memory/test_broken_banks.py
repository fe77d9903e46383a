"""A checkpoint whose bank isn't finite is refused by name, with the rows."""

import pytest
import torch
from mmengine.runner.checkpoint import load_state_dict

from mmseg_cmdl import InputError
from mmseg_cmdl.models.memory import DistributionBank, FeatureBank


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
