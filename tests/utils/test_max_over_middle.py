"""The vectorised maximum against torch.max, with ties and in any layout."""

import pytest
import torch

from mmseg_cmdl.utils import max_over_middle


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('shape', [(19, 9, 50), (3, 1, 4), (1, 4, 33), (5, 3, 1), (3, 2, 0)])
@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.usefixtures('each_way')
def test_equals_max(shape, ties, dtype):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    if ties:
        values = values.round()
    K, N, P = shape
    for given in (values, values.transpose(0, 2).contiguous().transpose(0, 2)):
        largest, row = max_over_middle(given)
        expected, first = values.max(dim=1)  # documented to give the first of equal ones
        assert torch.equal(largest, expected)
        assert torch.equal(row, first + N * torch.arange(K)[:, None])
        assert torch.equal(given.reshape(K * N, P).gather(0, row), largest)


def test_takes_no_part_in_the_graph():
    values = torch.randn(2, 3, 4, requires_grad=True)
    assert not max_over_middle(values)[0].requires_grad
