"""CPHead against CPNet's equations."""

import pytest
import torch
import torch.nn.functional as F
from mmseg.registry import MODELS

from tests.models.decode_heads import tiny_head
from tests.reference import mdrl

SIZE = tiny_head.SIZES[-1]


def build(dtype=torch.float64, **options):
    options = dict(dict(prior_size=SIZE, prior_channels=6, kernel_size=3), **options)
    head = tiny_head.make('CPHead', dtype, **options).eval()
    torch.nn.init.normal_(head.conv_seg.weight)
    return head


def conv(module, x, padding=0, relu=True):
    x = module.bn(F.conv2d(x, module.conv.weight, padding=padding))
    return F.relu(x) if relu else x


def aggregate(module, x):
    """The separable convs, whose biases are zero here, as the dense kernels they factorise."""
    x = conv(module.reduction, x, 1)
    summed = 0
    for one, other in (module.tall_wide, module.wide_tall):
        kernel = one.weight * other.weight  # [C, 1, k, 1] times [C, 1, 1, k]
        summed = summed + F.conv2d(x, kernel, padding=1, groups=x.shape[1])
    return F.relu(module.norm(summed))


@torch.no_grad()
def test_forward_is_that_of_the_equations():
    head, inputs = build(), tiny_head.features()
    for part in (*head.aggregation.tall_wide, *head.aggregation.wide_tall):
        torch.nn.init.zeros_(part.bias)
    x = inputs[3]
    values = aggregate(head.aggregation, x)
    logits = conv(head.prior_conv, values, relu=False)
    num = SIZE[0] * SIZE[1]
    intra, inter = torch.zeros_like(values), torch.zeros_like(values)
    for b in range(len(x)):
        for pixel in range(num):
            row, col = divmod(pixel, SIZE[1])
            for other in range(num):  # of the prior's N outputs at this pixel
                p = logits[b, other, row, col].sigmoid()
                value = values[b, :, other // SIZE[1], other % SIZE[1]]
                intra[b, :, row, col] += p * value / num
                inter[b, :, row, col] += (1 - p) * value / num
    features = torch.cat([x, conv(head.intra_conv, intra), conv(head.inter_conv, inter)], dim=1)
    expected = head.conv_seg(conv(head.bottleneck, features, 1))
    torch.testing.assert_close(head(inputs), expected, rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_the_context_of_other_classes_is_right_where_the_prior_is_near_one(dtype, tolerance):
    """1 - P is 6e-6 there; the mean less what P gathers has no digit of it left."""
    head, inputs = build(dtype), [x.to(dtype) for x in tiny_head.features()]
    head.prior_conv.conv.weight.zero_()
    head.prior_conv.bn.bias.fill_(12)
    seen = []
    head.inter_conv.register_forward_pre_hook(lambda module, args: seen.append(args[0].double()))
    head(inputs)
    values = head.aggregation(inputs[3]).double()
    share = torch.tensor(-12.0, dtype=torch.float64).sigmoid()
    expected = (share * values.mean(dim=(2, 3), keepdim=True)).expand_as(values)
    torch.testing.assert_close(seen[0], expected, rtol=tolerance, atol=tolerance * 1e-7)


def test_losses_are_the_heads_and_the_priors():
    head, inputs = build().train(), tiny_head.features()
    samples = tiny_head.samples(tiny_head.label_maps())
    losses = head.loss(inputs, samples, None)
    assert set(losses) == {'loss_ce', 'acc_seg', 'loss_prior'}
    small = mdrl.nearest_labels(tiny_head.label_maps(), SIZE).flatten(1)
    _, logits = head.forward_features(inputs)
    expected = MODELS.build(dict(type='AffinityLoss'))(logits, small)
    assert losses['loss_prior'].item() == pytest.approx(expected.item(), rel=1e-10)


def test_an_even_batch_learns_which_pixels_are_alike():
    """Each pixel's feature is its class: the prior can be learned, and is."""
    head = build(torch.float32).train()
    labels = tiny_head.label_maps(size=SIZE)
    known = labels.clamp(max=tiny_head.NUM_CLASSES)
    maps = F.one_hot(known, 10).permute(0, 3, 1, 2).float()
    inputs, samples = [None, None, None, maps], tiny_head.samples(labels)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    history = []
    for _ in range(60):
        losses = head.loss(inputs, samples, None)
        optimizer.zero_grad()
        losses['loss_prior'].backward()
        optimizer.step()
        history.append(losses['loss_prior'].item())
    assert history[-1] < 0.2 * history[0]


@pytest.mark.parametrize('size', [(9, 7), (3, 11)])
def test_a_map_of_another_size_is_brought_to_that_of_the_prior(size):
    head = build()
    inputs = tiny_head.features(sizes=[*tiny_head.SIZES[:3], size])
    resized = [None, None, None, mdrl.resize(inputs[3], SIZE)]
    got = head(inputs)
    assert got.shape == (2, tiny_head.NUM_CLASSES, *SIZE)
    torch.testing.assert_close(got, head(resized), rtol=0, atol=1e-12)
    samples = tiny_head.samples(tiny_head.label_maps())
    losses, expected = (head.loss(maps, samples, None) for maps in (inputs, resized))
    for key in ('loss_ce', 'loss_prior'):
        assert losses[key].item() == pytest.approx(expected[key].item(), rel=1e-10)


def test_depthwise_convs_start_as_conv_modules_do():
    """Normal, of variance 2 over what leaves a cell, C k of them; no bias."""
    head = build(prior_channels=64, kernel_size=5)
    for conv in (*head.aggregation.tall_wide, *head.aggregation.wide_tall):
        assert conv.weight.std().item() == pytest.approx((2 / (64 * 5)) ** 0.5, rel=0.15)
        assert conv.weight.abs().max() > 2.2 * conv.weight.std()  # not uniform
        assert not conv.bias.any()
