"""Channelized axial attention and CAAHead against the definition, with every tensor formed."""

import pytest
import torch
import torch.nn.functional as F
from mmseg.registry import MODELS

from tests.models.decode_heads import tiny_head


def conv(module, x, padding=0):
    return F.relu(module.bn(F.conv2d(x, module.conv.weight, padding=padding)))


def channel_weights(module, contributions):
    """Of a map [..., H, W, C] of all contributions to one row or column."""
    x = contributions.mean(dim=(-3, -2))
    *hidden, last = [layer for layer in module.layers if isinstance(layer, torch.nn.Linear)]
    for layer in hidden:
        x = F.leaky_relu(x @ layer.weight.t(), 0.2)
    return torch.sigmoid(x @ last.weight.t())[..., None, None, :]


def attend(layer, x):
    """One image [C, H, W]: contributions [H, W, C] to each row, then to each column, formed."""
    _, H, W = x.shape
    column = conv(layer.column_query, x[None])[0]
    row = conv(layer.row_query, x[None])[0]
    values = conv(layer.value, x[None])[0].permute(1, 2, 0)
    first = torch.zeros_like(values)
    for i in range(H):
        contributions = torch.zeros_like(values)
        for w in range(W):
            scores = torch.stack([column[:, i, w] @ column[:, j, w] for j in range(H)])
            contributions[:, w] = scores.softmax(0)[:, None] * values[:, w]
        if layer.column_channels is not None:
            contributions = contributions * channel_weights(layer.column_channels, contributions)
        first[i] = contributions.sum(dim=0)
    second = torch.zeros_like(values)
    for j in range(W):
        contributions = torch.zeros_like(values)
        for h in range(H):
            scores = torch.stack([row[:, h, j] @ row[:, h, k] for k in range(W)])
            contributions[h] = scores.softmax(0)[:, None] * first[h]
        if layer.row_channels is not None:
            contributions = contributions * channel_weights(layer.row_channels, contributions)
        second[:, j] = contributions.sum(dim=1)
    return second.permute(2, 0, 1)


def layer(**options):
    torch.manual_seed(0)
    config = dict(
        type='ChannelizedAxialAttention', channels=6, query_channels=4, norm_cfg=dict(type='BN')
    )
    config.update(options)
    module = MODELS.build(config).double().eval()
    for part in module.modules():  # of a size that matters
        if isinstance(part, torch.nn.Linear):
            torch.nn.init.normal_(part.weight)
    return module


@pytest.mark.parametrize('size', [(5, 3), (1, 4), (4, 1), (1, 1)])
@pytest.mark.parametrize('options', [{}, dict(channelize=False), dict(num_hidden=0)])
def test_attention_is_the_definition(size, options):
    module = layer(**options)
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    expected = torch.stack([attend(module, image) for image in x])
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-10)


def test_attention_has_the_right_gradient():
    module = layer()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    x = torch.randn(1, 6, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, x)


@pytest.mark.parametrize('image_level', [True, False])
def test_head_is_attention_beside_the_mean_of_the_image(image_level):
    options = dict(attention_channels=6, attention=dict(query_channels=4), image_level=image_level)
    head, inputs = tiny_head.make('CAAHead', **options).eval(), tiny_head.features()
    torch.nn.init.normal_(head.conv_seg.weight)
    x = inputs[3]
    related = torch.stack([attend(head.attention, image) for image in conv(head.reduction, x, 1)])
    features = [conv(head.out_conv, related)]
    if image_level:
        features.append(conv(head.image_conv, x.mean((2, 3), keepdim=True)).expand_as(features[0]))
    expected = head.conv_seg(conv(head.bottleneck, torch.cat(features, dim=1)))
    torch.testing.assert_close(head(inputs), expected, rtol=0, atol=1e-10)


def test_linear_layers_start_by_glorots_rule():
    """Uniform up to sqrt(6 / (C_in + C_out)), and so gradients reach the first of six."""
    torch.manual_seed(0)
    attention = MODELS.build(dict(type='ChannelizedAxialAttention', channels=64))
    for module in (attention.column_channels, attention.row_channels):
        linears = [part for part in module.layers if isinstance(part, torch.nn.Linear)]
        assert [tuple(part.weight.shape) for part in linears] == [
            (16, 64),
            *[(16, 16)] * 4,
            (64, 16),
        ]
        for part in linears:
            bound = (6 / sum(part.weight.shape)) ** 0.5
            assert 0.95 * bound < part.weight.abs().max().item() <= bound
            assert part.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.15)
