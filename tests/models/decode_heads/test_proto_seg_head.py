"""ProtoSegHead and its losses: recorded numbers of the release, the naive form, what is refused."""

import pytest
import torch
import torch.nn.functional as F

from mmseg_cmdl.models import (
    DistributionBank,
    PixelPrototypeContrastLoss,
    PixelPrototypeDistanceLoss,
)
from tests.models.decode_heads import tiny_head
from tests.reference import golden, proto_seg

DTYPES = [torch.float64, torch.float32]
LOSSES = golden.names('protoseg_losses_*')
UPDATES = golden.names('protoseg_update_*')


def build(dtype=torch.float64, **options):
    options = {'align_corners': True, 'bank': tiny_head.BANK, **options}
    return tiny_head.make('ProtoSegHead', dtype, **options)


# ---- recorded numbers ----


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('form', ['released', 'channel'])
@pytest.mark.parametrize('name', golden.names('protoseg_head_*'))
def test_golden_head(name, form, dtype):
    data = golden.load(name, dtype)
    classes, prototypes, width = data['prototypes_before'].shape
    head = build(
        dtype,
        num_classes=classes,
        channels=width,
        norm_axis=form,
        bank=dict(type='DistributionBank', num_distributions=prototypes),
    ).eval()
    state = golden.weights(data)
    for part, module in {
        'proj_head.proj.0': head.conv_seg,
        'proj_head.proj.2': head.embedding_conv,
        'feat_norm': head.embedding_norm,
        'mask_norm': head.score_norm,
    }.items():
        module.load_state_dict({leaf: state.pop(f'{part}.{leaf}') for leaf in ('weight', 'bias')})
    assert not [key for key in state if key != 'prototypes'], sorted(state)
    head.bank.distributions.copy_(data['prototypes_after_forward'])
    prefix = '' if form == 'released' else 'channelnorm_'
    feats = data['feats'].requires_grad_()

    embeddings = head.embed(feats)
    scores = head.bank.similarity(embeddings).amax(dim=-1)
    output = head.cls_seg(feats)
    (grad,) = torch.autograd.grad(golden.probe(output), feats)
    got = {
        'embeddings': embeddings.flatten(0, 2),
        'class_scores': scores.flatten(0, 2),
        'output': output,
        'probe_grad_feats': grad,
    }
    for key, value in got.items():
        golden.assert_close(value, data[prefix + key], single=2e-4 if 'grad' in key else 1e-5)
    # forward passes leave the prototypes alone
    assert torch.equal(head.bank.distributions, data['prototypes_after_forward'])


def as_maps(data, *keys):
    """[P, ...] arrays as [B, h, w, ...]."""
    size = [int(n) for n in data['batch_height_width']]
    return [data[key].unflatten(0, size) for key in keys]


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('name', LOSSES)
def test_golden_losses(name, dtype):
    data = golden.load(name, dtype)
    classes, prototypes, width = data['prototypes'].shape
    weights = data.get('ce_class_weights')
    head = build(
        dtype,
        num_classes=classes,
        channels=width,
        bank=dict(type='DistributionBank', num_distributions=prototypes),
    )
    head.bank.distributions.copy_(data['prototypes'])
    head.score_norm.load_state_dict(dict(weight=data['ln_weight'], bias=data['ln_bias']))
    (embeddings,) = as_maps(data, 'embeddings')
    embeddings.requires_grad_()
    similarity = head.bank.similarity(embeddings)
    torch.testing.assert_close(
        similarity.flatten(0, 2).transpose(1, 2), data['similarity'], rtol=0, atol=1e-6
    )
    logits = head.classify(similarity)

    (labels,) = as_maps(data, 'pixel_labels')
    classes_of = torch.where(labels == 255, classes, labels)
    assigned = head.bank.assign(similarity.flatten(0, 2), classes_of.flatten())
    targets = torch.where(
        classes_of < classes, classes_of * prototypes + assigned.view_as(classes_of), -1
    )
    assert torch.equal(targets.flatten(), data['contrast_target'])
    if 'many' in name:  # a prototype whose number is 255 is one like any other
        assert (targets == 255).any()

    # not through MMSegmentation's loss, which adds an epsilon to the number of pixels
    resized = F.interpolate(logits, data['labels'].shape[1:], mode='bilinear', align_corners=True)
    ce = F.cross_entropy(resized, data['labels'], weight=weights, ignore_index=255)
    ppc = PixelPrototypeContrastLoss()(similarity, targets)
    got = {
        'released_loss_ce': ce,
        'released_loss_ppc': ppc,
        'released_loss_ppd': PixelPrototypeDistanceLoss()(similarity, targets),
        'formula_ppc_tau0p1': PixelPrototypeContrastLoss(temperature=0.1)(similarity, targets),
    }
    got['released_loss_total'] = (
        ce
        + PixelPrototypeContrastLoss(loss_weight=0.01)(similarity, targets)
        + PixelPrototypeDistanceLoss(loss_weight=0.001)(similarity, targets)
    )
    exact = dtype == torch.float64
    for key, value in got.items():
        assert float(value) == pytest.approx(data[key], rel=1e-10 if exact else 1e-5, abs=1e-10)
        (grad,) = torch.autograd.grad(value, embeddings, retain_graph=True)
        golden.assert_close(grad.flatten(0, 2), data[f'{key}_grad'], 1e-10, 1e-4)
    norm = head.score_norm
    for grad, leaf in zip(torch.autograd.grad(ce, [norm.weight, norm.bias]), ('weight', 'bias')):
        golden.assert_close(grad, data[f'released_loss_ce_grad_ln_{leaf}'], 1e-10, 1e-4)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('name', [name for name in UPDATES if 'two_ranks' not in name])
def test_golden_updates(name, dtype):
    data = golden.load(name, dtype)
    bank = DistributionBank(*data['prototypes_before'].shape, momentum=data['momentum']).to(dtype)
    bank.distributions.copy_(F.normalize(data['prototypes_before'], dim=-1))
    for step in range(5):
        embeddings, labels = data['embeddings'][step], data['pixel_labels'][step]
        similarity = bank.similarity(embeddings)
        classes = torch.where(labels == 255, len(bank.distributions), labels)
        assigned = bank.assign(similarity, classes)
        known = labels != 255
        assert torch.equal(assigned[known], data['hard_assignment'][step][known])
        bank.update_(
            embeddings, labels, data['correct'][step].bool(), similarity=similarity,
            assigned=assigned,
        )  # fmt: skip
        atol = 1e-10 if dtype == torch.float64 else 1e-6
        torch.testing.assert_close(
            bank.distributions, data['prototypes_after'][step], rtol=0, atol=atol
        )


def test_two_ranks_are_one_batch_and_not_an_average_of_banks():
    """The release averages its ranks' prototypes; one update from all pixels is not that."""
    data = golden.load('protoseg_update_c_two_ranks_momentum0p9')
    prototypes = data['prototypes_before']
    for step in range(5):
        banks = []
        for rank in range(2):
            bank = DistributionBank(*prototypes.shape, momentum=0.9).double()
            bank.distributions.copy_(F.normalize(prototypes, dim=-1))
            bank.update_(
                data['embeddings'][step, rank], data['pixel_labels'][step, rank],
                data['correct'][step, rank].bool(),
            )  # fmt: skip
            banks.append(bank.distributions)
        of_each_rank = torch.stack(banks)
        torch.testing.assert_close(
            of_each_rank, data['prototypes_of_each_rank'][step], rtol=0, atol=1e-10
        )
        prototypes = of_each_rank.mean(dim=0)
        torch.testing.assert_close(prototypes, data['prototypes_after'][step], rtol=0, atol=1e-10)


# ---- the naive form ----


def test_losses_equal_the_naive_form():
    similarity = torch.rand(2, 3, 4, 5, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(-1, 15, (2, 3, 4))
    flat = similarity.flatten(0, 2), targets.flatten()
    for loss, expected in (
        (PixelPrototypeContrastLoss(0.3, 0.5), 0.5 * proto_seg.contrast(*flat, 0.3)),
        (PixelPrototypeDistanceLoss(0.5), 0.5 * proto_seg.distance(*flat)),
    ):
        value = loss(similarity, targets)
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
        (grad,) = torch.autograd.grad(value, similarity, retain_graph=True)
        (wanted,) = torch.autograd.grad(expected, similarity, retain_graph=True)
        torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-12)


def test_logits_equal_the_naive_form():
    head = build().eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        inputs = tiny_head.features()
        pixels = head.pixel_features(inputs)
        logits = head(inputs)
        hidden = F.conv2d(pixels, head.conv_seg.weight, head.conv_seg.bias).clamp(min=0)
        projected = F.conv2d(hidden, head.embedding_conv.weight, head.embedding_conv.bias)
        norm, scores = head.embedding_norm, head.score_norm
        for b, y, x in ((0, 0, 0), (1, 4, 5), (0, 2, 3)):
            row = projected[b, :, y, x]
            row = proto_seg.layer_norm(row / row.norm(), norm.weight, norm.bias)
            row = row / row.norm()
            best = torch.stack([max(row @ d for d in own) for own in head.bank.distributions])
            expected = proto_seg.layer_norm(best, scores.weight, scores.bias)
            torch.testing.assert_close(logits[b, :, y, x], expected, rtol=0, atol=1e-12)


# ---- training ----


def test_init_cfg_is_kept():
    for init_cfg, std in ((None, 0.2), (dict(type='Normal', layer='Conv2d', std=3.0), 3.0)):
        head = build(**({} if init_cfg is None else dict(init_cfg=init_cfg)))
        head.init_weights()
        assert head.conv_seg.weight.std().item() == pytest.approx(std, rel=0.3)


def test_only_pixels_classified_right_move_the_bank():
    """By the logits, after the LayerNorm has learned, not by the bare cosines."""
    head = build(bank=dict(type='DistributionBank', num_distributions=3, momentum=0.5))
    with torch.no_grad():
        head.score_norm.bias.copy_(torch.tensor([50.0, 0, 0, 0, 0]))  # all pixels are class 0
    start = head.bank.distributions.clone()
    losses, _ = tiny_head.step(head)
    moved = (head.bank.distributions != start).any(dim=-1).any(dim=-1)
    assert moved.tolist() == [True, False, False, False, False]
    small = F.interpolate(tiny_head.label_maps()[:, None].double(), tiny_head.SIZES[-1])[:, 0]
    expected = 100 * (small == 0).sum() / (small < 5).sum()
    assert float(losses['acc_distribution']) == pytest.approx(float(expected))


@pytest.mark.parametrize('name', ['PSPHead', 'UPerHead'])
def test_context_gives_what_is_embedded_at_its_size(name):
    options = {}
    if name == 'UPerHead':
        options = dict(in_channels=list(tiny_head.CHANNELS), in_index=[0, 1, 2, 3])
    head = build(context=dict(type=name, pool_scales=(1, 2)), **options)
    losses, grads = tiny_head.step(head)
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(grad is not None for grad in grads.values())
    size = tiny_head.SIZES[0 if name == 'UPerHead' else 3]
    assert head(tiny_head.features()).shape == (2, 5, *size)
