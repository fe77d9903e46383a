"""CPHead against its equations pixel by pixel, and in a segmentor."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmseg.registry import MODELS

from mmseg_cmdl.models.decode_heads.cp_head import Aggregation
from mmseg_cmdl.models.losses import AffinityLoss
from tests.models.decode_heads import tiny_head
from tests.models.segmentors import tiny_segmentor

SIZE = tiny_head.SIZES[-1]
OPTIONS = dict(type='CPHead', prior_size=SIZE, kernel_size=3, dropout_ratio=0.0)


def build(**options):
    torch.manual_seed(0)
    config = tiny_segmentor.head(**{**OPTIONS, **options})
    return MODELS.build(config).double()


def test_aggregation_is_two_separable_convolutions_summed():
    torch.manual_seed(0)
    layer = Aggregation(3, 5, dict(type='BN'), dict(type='ReLU')).double().eval()
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for (first, second), order in zip(layer.branches, (('tall', 'wide'), ('wide', 'tall'))):
        shapes = dict(tall=(3, 1, 5, 1), wide=(3, 1, 1, 5))
        assert tuple(first.weight.shape) == shapes[order[0]]
        assert tuple(second.weight.shape) == shapes[order[1]]
        for c in range(3):  # one after the other: a k x k kernel of rank 1
            kernel = (first.weight[c].flatten(), second.weight[c].flatten())
            rows, cols = kernel if order[0] == 'tall' else kernel[::-1]
            outer = rows[:, None] * cols
            expected[:, c : c + 1] += F.conv2d(x[:, c : c + 1], outer[None, None], padding=2)
    norm = layer.norm
    expected = F.relu(F.batch_norm(expected, norm.running_mean, norm.running_var))
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=0)  # epsilon of the norm


@torch.no_grad()
def test_contexts_are_those_of_the_prior():
    head = build().eval()
    inputs = tiny_head.features()
    caught = []
    head.bottleneck.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    features, logits = head.forward_features(inputs)
    (joined,) = caught
    x = inputs[-1]
    pixels = head.aggregation(head.reduction(x)).flatten(2)  # [B, C, n]
    n = pixels.shape[2]
    assert logits.shape == (2, n, n)
    for b in range(2):
        for j in range(n):
            # the 1x1 conv gives pixel j its n relations
            at_j = head.prior(pixels[b, :, j].view(1, -1, 1, 1)).flatten()
            torch.testing.assert_close(logits[b, j], at_j)
            p = at_j.sigmoid()
            own = sum(p[i] * pixels[b, :, i] for i in range(n)) / n
            others = sum((1 - p[i]) * pixels[b, :, i] for i in range(n)) / n
            expected = torch.cat([x[b].flatten(1)[:, j], own, others])
            torch.testing.assert_close(joined[b].flatten(1)[:, j], expected)
    torch.testing.assert_close(head(inputs), head.conv_seg(features))


def test_losses_are_those_of_the_logits_and_the_prior():
    head = build(loss_affinity=dict(type='AffinityLoss', loss_weight=0.3)).train()
    tiny_head.freeze_norms(head)
    inputs, labels = tiny_head.features(), tiny_head.label_maps()
    losses = head.loss(inputs, tiny_head.samples(labels), None)
    assert set(losses) == {'loss_ce', 'acc_seg', 'loss_affinity'}
    _, prior = head.forward_features(inputs)
    (h, w), (H, W) = SIZE, labels.shape[1:]
    nearest = [[labels[:, y * H // h, x * W // w] for x in range(w)] for y in range(h)]
    nearest = torch.stack([torch.stack(row, dim=1) for row in nearest], dim=1).flatten(1)
    expected = 0.3 * AffinityLoss()(prior, nearest, tiny_head.NUM_CLASSES)
    torch.testing.assert_close(losses['loss_affinity'], expected)
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    assert head.prior.conv.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_another_map_size_goes_through_the_prior_size():
    head = build(prior_size=(4, 3)).eval()
    logits, (features, prior) = head(tiny_head.features()), head.forward_features(
        tiny_head.features()
    )  # fmt: skip
    assert prior.shape == (2, 12, 12)
    assert logits.shape == (2, tiny_head.NUM_CLASSES, *SIZE)
    assert features.shape[2:] == SIZE


def test_learns_which_pixels_are_of_one_class():
    model = tiny_segmentor.build(tiny_segmentor.head(**OPTIONS), 'EncoderDecoder')
    losses = [tiny_segmentor.train_step(model, lr=0.2) for _ in range(30)]
    first, last = (float(step['decode.loss_affinity']) for step in (losses[0], losses[-1]))
    assert last < 0.7 * first


def test_under_car_it_trains_and_folds_to_the_same_predictions():
    model = tiny_segmentor.build(tiny_segmentor.head(**OPTIONS), pointwise=['bottleneck']).double()
    losses = tiny_segmentor.train_step(model)
    assert {'decode.loss_affinity', 'car.loss_inter_c2c'} <= set(losses)
    assert model.decode_head.bottleneck.conv.kernel_size == (1, 1)
    model = tiny_segmentor.build(tiny_segmentor.head(**OPTIONS)).double()
    tiny_segmentor.train_step(model)
    plain = tiny_segmentor.build(tiny_segmentor.head(**OPTIONS), 'EncoderDecoder', seed=1).double()
    plain.load_state_dict(model.folded_state_dict())
    torch.testing.assert_close(
        tiny_segmentor.logits(plain), tiny_segmentor.logits(model), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(prior_size=5), 'prior_size must be the size'),
        (dict(prior_size=(5, 0)), 'prior_size must be the size'),
        (dict(kernel_size=4), 'kernel_size must be odd'),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**ConfigDict(options))
