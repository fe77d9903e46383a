import copy
import math

import pytest
import torch
from mmseg.registry import MODELS
from torch import nn

from tests.guarantees.cases import assert_same
from tests.models.decode_heads import tiny_head
from tests.reference import mdrl

FORMULATIONS = {'paper': tiny_head.paper, 'released': tiny_head.released}


def _record_updates(head):
    """Keep what the bank is given, as it was given: embeddings, labels."""
    seen = []
    head.consistency.register_forward_pre_hook(
        lambda module, args: seen.append(
            [args[0][name].detach().clone() for name in ('embeddings', 'similarity', 'labels')]
        )
    )
    return seen


# ---- losses and update, against the naive forms ----


@pytest.mark.parametrize('embedding', ['projection', 'pixel'])
@pytest.mark.parametrize('formulation', FORMULATIONS)
def test_losses_see_the_bank_of_before_and_then_it_moves(formulation, embedding):
    head = tiny_head.build(
        loss_consistency=FORMULATIONS[formulation](),
        embedding=embedding,
        act_cfg=dict(type='LeakyReLU'),
    )
    seen = _record_updates(head)
    for iteration in range(3):
        before = head.bank.distributions.clone()
        losses, _ = tiny_head.step(head, seed=iteration)
        embeddings, _, labels = seen[-1]
        assert torch.equal(labels, tiny_head.label_maps(iteration))
        torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(2, 5, 6).double())
        similarity = torch.einsum('bhwz,knz->bhwkn', embeddings, before)
        for loss, weight in zip(head.consistency.losses, (0.3, 0.7)):
            expected = weight * mdrl.naive(loss)(similarity, labels)
            assert losses[loss.loss_name].item() == pytest.approx(expected.item(), rel=1e-9)
        small = mdrl.nearest_labels(labels, (5, 6)).flatten()
        expected, _, _ = mdrl.update(before, embeddings.flatten(0, 2), small, momentum=0.9)
        torch.testing.assert_close(head.bank.distributions, expected, rtol=0, atol=1e-11)
        assert not torch.equal(expected, before)
        assert torch.equal(head.bank.distributions[2], before[2])  # class 2 is absent
        own = [
            mdrl.nearest_is_own(before, e, int(c))
            for e, c in zip(embeddings.flatten(0, 2), small)
            if c != 255
        ]
        assert losses['acc_distribution'].item() == pytest.approx(100 * sum(own) / len(own))
        assert losses['stat_left_out_pixels'] == 0


@pytest.mark.parametrize('embedding', ['projection', 'pixel'])
def test_embedding(embedding):
    """'pixel' is R to unit length; 'projection' conv, norm, ReLU, conv, l2, LayerNorm, l2."""
    head = tiny_head.build(embedding=embedding).eval()
    if embedding == 'projection':
        nn.init.normal_(head.projection.norm.weight)
        nn.init.normal_(head.projection.norm.bias)
    pixels = head.bottleneck(tiny_head.features()[3])
    x = pixels
    if embedding == 'projection':
        first, last = [m for m in head.projection.modules() if isinstance(m, nn.Conv2d)]
        norm = head.projection.convs[0].norm
        x = torch.einsum('oc,bchw->bohw', first.weight[:, :, 0, 0], x)
        x = (
            (x - norm.running_mean[:, None, None])
            / (norm.running_var[:, None, None] + norm.eps).sqrt()
            * norm.weight[:, None, None]
            + norm.bias[:, None, None]
        ).clamp(min=0)
        x = torch.einsum('oc,bchw->bohw', last.weight[:, :, 0, 0], x) + last.bias[:, None, None]
    x = x.permute(0, 2, 3, 1)
    x = mdrl.unit(x)
    if embedding == 'projection':
        layer = head.projection.norm
        centred = x - x.mean(-1, keepdim=True)
        x = centred / (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt()
        x = mdrl.unit(x * layer.weight + layer.bias)
    torch.testing.assert_close(head.embed(pixels), x, rtol=0, atol=1e-10)


@pytest.mark.parametrize('formulation', ['paper', 'released'])
def test_the_first_of_equally_near_distributions_is_moved_to(formulation):
    """cos is 0.6 to both distributions of the own class and 0 to those of the other one."""
    bank = torch.tensor(
        [[[0.6, 0.8, 0.0], [0.6, 0.0, 0.8]], [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]],
        dtype=torch.float64,
    )
    labels = torch.zeros(1, 1, 1, dtype=torch.long)
    loss = MODELS.build(dict(type='ClassLocalConsistencyLoss', formulation=formulation)).double()
    embedding = torch.tensor([1.0, 0.0, 0.0]).double().view(1, 1, 1, 3).requires_grad_()
    value = loss(torch.einsum('bhwz,knz->bhwkn', embedding, bank), labels)
    (grad,) = torch.autograd.grad(value, embedding)
    # LayerNorm of (0.6, 0) is (1, -1) up to its epsilon: a steeper slope, of the same direction
    norm = 0.3**2 + 1e-5
    scores, slope = (0.6, 1) if formulation == 'paper' else (0.6 / norm**0.5, 1e-5 / norm**1.5)
    wrong = 1 / (1 + math.exp(scores))  # probability of the other class
    expected = slope * wrong * (bank[1, 0] - bank[0, 0])
    torch.testing.assert_close(grad.flatten(), expected, rtol=0, atol=1e-12)


@MODELS.register_module()
class TestOwnLoss(nn.Module):
    """A user's own loss: squared distance of 1 to the nearest cosine of the true class."""

    __test__ = False
    loss_name = 'loss_own'

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.shapes = []

    def forward(self, similarity, labels, ignore_index=255):
        self.shapes.append((tuple(similarity.shape), tuple(labels.shape)))
        small = mdrl.nearest_labels(labels, similarity.shape[1:3])
        own = torch.where(small == ignore_index, 0, small)[..., None]
        nearest = similarity.amax(-1).gather(-1, own)[..., 0]
        return self.scale * ((1 - nearest).square() * (small != ignore_index)).mean()


def test_released_update_takes_the_pixels_that_are_right_after_the_layer_norm():
    """In float64, pixel by pixel: once its weights have learned, other pixels move the bank."""
    head = tiny_head.build(loss_consistency=tiny_head.released())
    norm = head.consistency.losses[0].norm
    generator = torch.Generator().manual_seed(0)
    norm.weight.data.copy_(torch.rand(norm.weight.shape, generator=generator) * 2)
    norm.bias.data.copy_(torch.randn(norm.bias.shape, generator=generator))
    before, seen = copy.deepcopy(head.bank), _record_updates(head)
    tiny_head.step(head)
    (embeddings, similarity, labels), moved = seen[0], {}
    classes = mdrl.nearest_labels(labels, similarity.shape[1:3]).flatten()
    for learned in (True, False):
        correct = []
        for scores, label in zip(similarity.amax(dim=-1).flatten(0, 2), classes):
            if learned:
                scores = (scores - scores.mean()) / (scores.var(unbiased=False) + norm.eps).sqrt()
                scores = scores * norm.weight + norm.bias
            correct.append(int(scores.argmax()) == int(label))
        bank = copy.deepcopy(before)
        bank.update_(embeddings.flatten(0, 2), classes, correct=torch.tensor(correct))
        moved[learned] = bank.distributions
    assert (moved[True] - moved[False]).abs().max() > 1e-3
    torch.testing.assert_close(head.bank.distributions, moved[True], rtol=0, atol=1e-12)


def test_a_users_own_loss_works_unchanged():
    head = tiny_head.build(loss_consistency=[*tiny_head.paper(), dict(type='TestOwnLoss')])
    alone = tiny_head.build()
    seen = _record_updates(head)
    bank = head.bank.distributions.clone()
    (losses, grads), (plain, _) = tiny_head.step(head), tiny_head.step(alone)
    assert head.consistency.losses[2].shapes == [((2, 5, 6, 5, 3), (2, *tiny_head.LABEL_SIZE))]
    for key in ('loss_clcl', 'loss_cgcl'):
        assert losses[key].item() == pytest.approx(plain[key].item(), rel=1e-12)
    similarity = torch.einsum('bhwz,knz->bhwkn', seen[0][0], bank)
    expected = TestOwnLoss()(similarity, seen[0][2])
    assert losses['loss_own'].item() == pytest.approx(expected.item(), rel=1e-9)
    assert grads['consistency.losses.2.scale'] is not None
    torch.testing.assert_close(head.bank.distributions, alone.bank.distributions)


# ---- what must not count ----


@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_non_finite_embeddings_never_reach_the_bank(bad):
    """Two labelled pixels and an ignored one go bad; the first two are counted."""
    head = tiny_head.build()
    labels = tiny_head.label_maps(ignored=0.0)
    labels[0, :8] = 255  # feature rows 0 and 1

    def poison(module, inputs, out):
        out = out.clone()
        out[0, 4, 2] = out[1, 3, 5, 0] = out[0, 0, 0] = bad
        return out

    head.projection.register_forward_hook(poison)
    seen = _record_updates(head)
    before = head.bank.distributions.clone()
    losses = head.loss(tiny_head.features(), tiny_head.samples(labels), None)
    assert losses['stat_left_out_pixels'] == 2
    small = mdrl.nearest_labels(labels, (5, 6)).flatten()
    expected, _, _ = mdrl.update(before, seen[0][0].flatten(0, 2), small, momentum=0.9)
    torch.testing.assert_close(head.bank.distributions, expected, rtol=0, atol=1e-11)
    assert head.bank.distributions.isfinite().all()
    # the next, clean iteration is as healthy as ever
    head.projection._forward_hooks.clear()
    losses, _ = tiny_head.step(head, seed=1)
    assert all(value.isfinite().all() for value in losses.values())


def test_class_255_is_a_class_where_another_label_is_ignored():
    """More than 255 classes: only `ignore_index` itself is left out, not the usual 255."""
    head = tiny_head.build(num_classes=260, ignore_index=1000, bank=BANK_FAR)
    labels = torch.full((2, *tiny_head.LABEL_SIZE), 255)
    labels[0, :10] = 1000
    before = head.bank.distributions.clone()
    losses = head.loss(tiny_head.features(), tiny_head.samples(labels), None)
    changed = (head.bank.distributions != before).any(-1).any(-1)
    assert changed.nonzero().flatten().tolist() == [255]
    assert losses['loss_cgcl'] > 0


# ---- when the bank moves ----


@pytest.mark.parametrize('build', [tiny_head.build, tiny_head.build_mcibi])
def test_a_frozen_memory_stands_still(build):
    """A teacher in training mode: whatever it is shown, its bank stays. So under no_grad."""
    for frozen in ('head', 'gradients off'):
        head = build()
        tiny_head.step(head)
        before = copy.deepcopy(head.bank.state_dict())
        head.requires_grad_(frozen != 'head')
        with torch.set_grad_enabled(frozen == 'head'):
            losses = head.loss(
                tiny_head.features(1), tiny_head.samples(tiny_head.label_maps(1)), None
            )
        assert 'stat_left_out_pixels' not in losses
        for key, value in head.bank.state_dict().items():
            assert torch.equal(value, before[key]), (frozen, key)
        # one layer that learns is enough
        head.conv_seg.requires_grad_(True)
        head.loss(tiny_head.features(1), tiny_head.samples(tiny_head.label_maps(1)), None)
        assert head.bank.num_updates == before['num_updates'] + 1


@pytest.mark.parametrize('formulation', FORMULATIONS)
def test_gradients_are_those_of_a_bank_that_does_not_move(formulation):
    """The update happens between forward and backward; momentum 0 moves the bank far."""
    options = dict(loss_consistency=FORMULATIONS[formulation](), bank=dict(BANK_FAR))
    moving, still = tiny_head.build(**options), tiny_head.build(**options)
    still.consistency._forward_hooks.clear()
    before = moving.bank.distributions.clone()
    (_, got), (_, expected) = tiny_head.step(moving), tiny_head.step(still)
    assert (moving.bank.distributions - before).abs().max() > 0.1
    assert torch.equal(still.bank.distributions, before)
    assert_same(got, expected)


BANK_FAR = dict(type='DistributionBank', num_distributions=3, momentum=0.0, update_pixels='all')


# ---- precision ----


def test_embeddings_and_losses_are_in_full_precision_under_autocast():
    head = tiny_head.build(torch.float32)
    seen = _record_updates(head)
    x = tiny_head.features(dtype=torch.float32)
    with torch.autocast('cpu', torch.bfloat16):
        losses = head.loss(x, tiny_head.samples(tiny_head.label_maps()), None)
    embeddings, *_ = seen[0]
    assert embeddings.dtype == torch.float32
    assert losses['loss_clcl'].dtype == losses['loss_cgcl'].dtype == torch.float32


@pytest.mark.parametrize('losses', [tiny_head.paper, tiny_head.released])
def test_trains_in_bfloat16_throughout(losses):
    """All weights in bfloat16, as after `model.to(torch.bfloat16)`; not autocast."""
    options = dict(loss_consistency=losses())
    expected, _ = tiny_head.step(tiny_head.build(torch.float32, **options))
    head = tiny_head.build(torch.bfloat16, **options)
    found, grads = tiny_head.step(head)
    for name in ('loss_clcl', 'loss_cgcl'):
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], expected[name], rtol=0.02, atol=0)
    assert all(grad.isfinite().all() for grad in grads.values())
    norms = head.bank.distributions.float().norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=0.01)


# ---- fuse_memory is called, not read ----


class _Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize('kind', ['plain', 'ConvWS', 'parametrization', 'hook', 'bias'])
def test_whatever_layer_fuses_the_memory_acts(kind):
    options = dict(conv_cfg=dict(type='ConvWS')) if kind == 'ConvWS' else {}
    if kind == 'bias':
        options = dict(norm_cfg=None)
    head = tiny_head.build(**options).eval()
    conv = head.fuse_memory.conv
    if kind == 'parametrization':
        nn.utils.parametrize.register_parametrization(conv, 'weight', _Doubled())
    if kind == 'hook':
        conv.register_forward_hook(lambda module, inputs, output: 3 * output)
    if kind == 'bias':
        nn.init.normal_(conv.bias)
    weights = torch.rand(2, 5, 3, 4, dtype=torch.float64).softmax(dim=1)
    got = head.read_memory(weights)
    # the layer on the N voted maps, not folded into the distributions
    expected = head.fuse_memory(mdrl.vote(weights, head.bank.distributions))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    folded = head.fold_memory()
    torch.testing.assert_close(folded(weights), expected.detach(), rtol=0, atol=1e-10)
    if kind == 'parametrization':  # read afresh in each forward pass
        (grad,) = torch.autograd.grad(got.sum(), conv.parametrizations.weight.original)
        assert grad.abs().sum() > 0
        head.read_memory(weights).sum().backward()
