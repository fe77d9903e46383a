"""Sums by row against a loop in float64, with and without gradient."""

import pytest
import torch

from mmseg_cmdl.utils import row_sums


def _by_loop(features, rows, num_rows):
    sums = torch.zeros(num_rows, features.shape[1], dtype=torch.float64)
    counts = torch.zeros(num_rows, dtype=torch.float64)
    for feature, row in zip(features.double(), rows.tolist()):
        if row < num_rows:
            sums[row] += feature
            counts[row] += 1
    return sums, counts


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('with_gradient', [False, True])
@pytest.mark.parametrize(
    ('num_rows', 'pixels', 'counted'),
    [(5, 40, 0.7), (300, 50, 1.0), (3, 1, 1.0), (4, 20, 0.0), (6, 0, 1.0), (70000, 30, 0.5)],
)
def test_equals_a_loop(num_rows, pixels, counted, with_gradient, dtype):
    g = torch.Generator().manual_seed(num_rows)
    rows = torch.randint(num_rows, (pixels,), generator=g)
    left_out = torch.rand(pixels, generator=g) >= counted
    rows[left_out] = num_rows
    features = torch.randn(pixels, 7, generator=g).to(dtype)
    expected = _by_loop(features, rows, num_rows)
    features.requires_grad_(with_gradient)
    for got, want in zip(row_sums(features, rows, num_rows), expected):
        assert got.dtype == dtype
        assert got.requires_grad == (with_gradient and got.dim() == 2)
        atol = 1e-12 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(got.detach().double(), want, rtol=0, atol=atol)


@pytest.mark.parametrize('with_gradient', [False, True])
def test_what_is_left_out_may_hold_anything(with_gradient):
    features = torch.ones(4, 2)
    features[2] = torch.nan
    features.requires_grad_(with_gradient)
    sums, counts = row_sums(features, torch.tensor([1, 0, 2, 1]), 2)
    assert sums.tolist() == [[1, 1], [2, 2]]
    assert counts.tolist() == [1, 2]
