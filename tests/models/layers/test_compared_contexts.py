import pytest
import torch
from mmseg.registry import MODELS

from tests.reference.dgcw import conv


def build(kind, channels=8, **options):
    return MODELS.build(dict(type=kind, channels=channels, **options)).double()


def pixels(x):
    return x.flatten(2).transpose(1, 2)


@pytest.mark.parametrize('size', [(3, 5), (1, 1)])
def test_global_pooling_context(size):
    layer, x = build('GlobalPoolingContext'), torch.randn(2, 8, *size, dtype=torch.float64)
    expected = pixels(x) + conv(layer.conv, pixels(x).mean(1, keepdim=True))
    torch.testing.assert_close(pixels(layer(x)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('ratio', [1, 2])
def test_squeeze_excitation(ratio):
    layer = build('SqueezeExcitation', 16, ratio=ratio)
    x = torch.randn(2, 16, 3, 5, dtype=torch.float64)
    assert layer.conv1.conv.out_channels == 16 // ratio
    hidden = conv(layer.conv1.conv, pixels(x).mean(1, keepdim=True)).clamp(min=0)
    expected = pixels(x) / (1 + (-conv(layer.conv2.conv, hidden)).exp())
    torch.testing.assert_close(pixels(layer(x)), expected, rtol=0, atol=1e-12)


def test_pointwise_convs():
    layer, x = build('PointwiseConvs'), torch.randn(2, 8, 3, 5, dtype=torch.float64)
    expected = pixels(x) + conv(layer.g2, conv(layer.g1, pixels(x)).clamp(min=0))
    torch.testing.assert_close(pixels(layer(x)), expected, rtol=0, atol=1e-12)
