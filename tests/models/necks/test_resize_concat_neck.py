"""ResizeConcatNeck against the plain functions it stands for."""

import pytest
import torch
import torch.nn.functional as F

from mmseg_cmdl.models import ResizeConcatNeck

SHAPES = [(3, 9, 7), (4, 5, 4), (2, 3, 2)]


@pytest.mark.parametrize('stride', [1, 2])
def test_joins_at_the_first_size_and_downsamples(stride):
    torch.manual_seed(0)
    maps = [torch.randn(2, *shape, dtype=torch.float64) for shape in SHAPES]
    neck = ResizeConcatNeck([3, 4, 2], stride=stride, norm_cfg=dict(type='BN')).double().eval()
    (out,) = neck(maps)
    expected = torch.cat(
        [F.interpolate(x, (9, 7), mode='bilinear', align_corners=False) for x in maps], dim=1
    )
    if stride == 2:
        conv, norm = neck.downsample.conv, neck.downsample.bn
        assert conv.bias is None
        expected = F.conv2d(expected, conv.weight, stride=2, padding=1)
        expected = F.batch_norm(
            expected, norm.running_mean, norm.running_var, norm.weight, norm.bias
        ).relu()
        assert expected.shape == (2, 9, 5, 4)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def test_refuses_another_number_of_maps():
    with pytest.raises(ValueError, match='is for 2 maps, and the backbone gives 3'):
        ResizeConcatNeck([3, 4])([torch.zeros(1, *shape) for shape in SHAPES])
