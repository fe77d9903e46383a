import inspect
import operator

import pytest
import torch
import torch.nn.functional as F
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import nn

from mmseg_cmdl.models.decode_heads.label_check import batch_labels
from tests.models.decode_heads import golden_head, tiny_head
from tests.models.segmentors import every_head
from tests.reference import golden, mdrl
from tests.reference.dispatch import CountOps

NAMED = ('PSPHead', 'ASPPHead', 'CCHead', 'DAHead', 'UPerHead', 'NLHead', 'OCRHead')


# ---- recorded numbers ----


def _with_bank(dtype, num, **options):
    return tiny_head.build(dtype, bank=dict(num_distributions=num), **options)


def _of_mcibi(dtype, num, **options):
    return tiny_head.build_mcibi(dtype, **options)


@pytest.mark.parametrize(
    'name', [*golden.names('mdrl_forward_*'), *golden.names('mcibi_forward_*')]
)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_golden_aggregate(name, dtype):
    if name.startswith('mdrl'):
        parts = dict(attention='relation', fuse_memory_conv='fuse_memory')
        head, data = golden_head.load(_with_bank, name, dtype, **parts)
        head.bank.distributions.copy_(data['sd.memory'])
    else:
        head, data = golden_head.load(_of_mcibi, name, dtype, self_attention='relation')
        head.bank.features.copy_(data['sd.memory'].squeeze(1))
    golden_head.check_aggregate(head, data, 'feats_ms')


# ---- against the naive form ----


@pytest.mark.parametrize('fusion', ['concat', 'add', 'weighted_add'])
@pytest.mark.parametrize('hard', [False, True])
@pytest.mark.parametrize('context', [None, dict(type='PSPHead', channels=6)])
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('num', [1, 3, 'MCIBI'])
def test_aggregate_equals_the_naive_form(fusion, hard, context, training, num):
    """Also with batch statistics: the collapsed voting feeds the norm the same numbers."""
    options = dict(fusion=fusion, context=context, hard_aggregate=hard)
    if num == 'MCIBI':
        head = tiny_head.fill(tiny_head.build_mcibi(**options), empty=(1,))
        weights = []
    else:
        head = _with_bank(torch.float64, num, **options)
        weights = [head.fuse_memory.conv.weight]
    assert hasattr(head, 'fuse_pixels') == (fusion == 'concat')
    if fusion == 'weighted_add':
        assert head.fusion_weight.out_channels == 1
    head.train(training)
    pixels = torch.randn(2, 8, 3, 4, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    within = torch.randn(2, 6, 3, 4, dtype=torch.float64) if context else None
    output = head.aggregate(pixels, logits, within)
    expected = mdrl.aggregate(head, pixels, logits, within, hard)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-11)
    leaves = [pixels, logits, *weights]
    for got, want in zip(
        torch.autograd.grad(golden.probe(output), leaves, allow_unused=True),
        torch.autograd.grad(golden.probe(expected), leaves, allow_unused=True),
    ):
        if want is None:
            assert got is None or not got.any()
        else:
            torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


def test_forward_is_its_parts():
    """Eq. 1 to 5 in order: R, coarse logits, context, aggregation, classifier."""
    head = tiny_head.build(context=dict(type='PSPHead', pool_scales=(1, 2))).eval()
    inputs = tiny_head.features()
    for _ in range(2):  # and again when the bank has changed
        pixels = head.bottleneck(inputs[3])
        logits = head.coarse_classifier(pixels)
        within = head.context(inputs, logits)
        feats = mdrl.aggregate(head, pixels, logits, within)
        expected = head.conv_seg(head.final_conv(feats))
        torch.testing.assert_close(head.forward(inputs), expected, rtol=0, atol=1e-11)
        head.bank.distributions.copy_(head.bank.distributions.flip(0))
    assert head.bottleneck.conv.kernel_size == (3, 3)
    assert head.coarse_classifier[0].conv.kernel_size == head.final_conv.conv.kernel_size == (1, 1)


DEFAULTS = {
    'MDRLHead': {
        'bank.num_distributions': 9,
        'bank.momentum': 0.999,
        'bank.epsilon': 0.05,
        'bank.iterations': 3,
        'bank.assignment': 'argmax',
        'bank.update_pixels': 'correct',
        'consistency.losses.0.formulation': 'released',
        'consistency.losses.1.formulation': 'released',
        'context': None,
        'fusion': 'concat',
    },
    'MCIBIHead': {
        'bank.strategy': 'cosine',
        'momentum.start': 0.9,
        'momentum.power': 0.9,
        'update_size': 'label',
        'fusion': 'concat',
    },
}


@pytest.mark.parametrize('kind', DEFAULTS)
def test_defaults(kind):
    """The paper's settings, in the formulation of the authors' code, as the configs have it."""
    head = MODELS.build(dict(type=kind, in_channels=4, channels=4, num_classes=3))
    found = {option: operator.attrgetter(option)(head) for option in DEFAULTS[kind]}
    assert found == DEFAULTS[kind]


def test_transform_channels():
    assert tiny_head.build().relation.channels == 4  # C // 2, as in the paper
    assert tiny_head.build(transform_channels=3).relation.channels == 3


# ---- losses of the two classifiers ----


def test_losses_of_both_classifiers():
    """0.4 L_cls + L_aug (eq. 16 to 18), at label size; the host divides by all pixels."""
    head = tiny_head.build()
    inputs, labels = tiny_head.features(), tiny_head.label_maps()
    pixels = head.bottleneck(inputs[3])
    coarse = head.coarse_classifier(pixels)
    final = head.cls_seg(mdrl.aggregate(head, pixels, coarse))
    losses = head.loss(inputs, tiny_head.samples(labels), None)

    def cross_entropy(x):
        x = F.interpolate(x, labels.shape[1:], mode='bilinear', align_corners=False)
        return F.cross_entropy(x, labels, ignore_index=255, reduction='sum').item() / labels.numel()

    assert losses['coarse_loss_ce'].item() == pytest.approx(0.4 * cross_entropy(coarse), rel=1e-6)
    assert losses['loss_ce'].item() == pytest.approx(cross_entropy(final), rel=1e-6)
    right = F.interpolate(final, labels.shape[1:], mode='bilinear').argmax(1) == labels
    assert losses['acc_seg'].item() == pytest.approx(
        100 * right.sum().item() / (labels != 255).sum().item(), rel=1e-4
    )


# by head: weights of the losses by default (MDRL eq. 18, MCIBI eq. 19), and what else is logged
OBJECTIVES = {
    'MDRLHead': (
        dict(loss_ce=1, coarse_loss_ce=0.4, loss_clcl=0.01, loss_cgcl=0.05),
        {'coarse_acc_seg', 'acc_distribution'},
    ),
    'MCIBIHead': (
        dict(loss_ce=1, coarse_loss_ce=0.4, memory_loss_ce=1),
        {'coarse_acc_seg', 'acc_memory', 'stat_filled_classes', 'stat_memory_momentum'},
    ),
    'MCIBIPlusPlusHead': (dict(loss_ce=1, coarse_loss_ce=0.4), {'coarse_acc_seg'}),
    'ProtoSegHead': (dict(loss_ce=1, loss_ppc=0.01, loss_ppd=0.001), {'acc_distribution'}),
}


@pytest.mark.parametrize('kind', OBJECTIVES)
def test_the_objective_is_the_weighted_sum_of_these_losses(kind):
    """And of nothing else; in the second step, when there is a memory."""
    weights, logged = OBJECTIVES[kind]
    head, unit = tiny_head.make(kind), tiny_head.make(kind)
    for loss in unit.modules():
        if hasattr(loss, 'loss_weight'):
            loss.loss_weight = 1.0
    losses, ones = ([tiny_head.step(x, seed)[0] for seed in range(2)][1] for x in (head, unit))
    assert set(losses) == {*weights, *logged, 'acc_seg', 'stat_left_out_pixels'}
    for key, weight in weights.items():
        assert ones[key] > 0
        assert losses[key].item() == pytest.approx(weight * ones[key].item(), rel=1e-9), key


def test_pixel_sampler():
    """OHEM picks pixels for each of the two losses by the logits of that loss."""
    head = tiny_head.build(sampler=dict(type='OHEMPixelSampler', thresh=0.2001, min_kept=20))
    nn.init.normal_(head.conv_seg.weight, std=0.5)
    nn.init.normal_(head.coarse_classifier[-1].weight, std=0.5)
    labels = tiny_head.label_maps()
    _, coarse, augmented = head.forward_features(tiny_head.features())
    found = {'loss_ce': (head.cls_seg(augmented), 1.0), 'coarse_loss_ce': (coarse, 0.4)}
    losses, _ = tiny_head.step(head)
    for name, (logits, loss_weight) in found.items():
        full = F.interpolate(logits, labels.shape[1:], mode='bilinear', align_corners=False)
        own = full.softmax(1).gather(1, labels.clamp(max=4)[:, None])[:, 0]
        labelled = labels != 255
        hard = labelled & (own <= 0.2001)  # more than min_kept of them
        assert 20 < hard.sum() < 0.9 * labelled.sum()
        terms = F.cross_entropy(full, labels, ignore_index=255, reduction='none')
        expected = loss_weight * terms[hard].sum() / labels.numel()
        assert losses[name].item() == pytest.approx(expected.item(), rel=1e-9), name


# ---- contexts ----


@pytest.mark.parametrize('name', NAMED)
def test_context_map_is_what_the_heads_classifier_sees(name):
    """The map is the input of conv_seg of the same head standing alone."""
    options = every_head.HEADS[name]
    options = options[-1] if isinstance(options, list) else options
    head = tiny_head.build(context=dict(type=name, **options)).eval()
    inputs = tiny_head.features()
    alone = tiny_head.make(name, **options).eval()
    state = {
        key.split('context.')[1].removeprefix('head.'): value
        for key, value in head.state_dict().items()
        if key.startswith('context.')
    }
    missing, unexpected = alone.load_state_dict(state, strict=False)
    assert not unexpected
    assert all('_seg' in key for key in missing), missing
    seen = []
    alone.conv_seg.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    coarse = None
    if head.has_context_branch:
        coarse = head.coarse_classifier(head.bottleneck(inputs[3]))
    alone(inputs, coarse) if name == 'OCRHead' else alone(inputs)
    torch.testing.assert_close(head.context(inputs, coarse), seen[0], rtol=0, atol=1e-12)


def test_context_inherits_and_may_override():
    options = dict(
        context=dict(type='PSPHead'), norm_cfg=dict(type='GN', num_groups=2), align_corners=True
    )
    inner = next(
        m for m in tiny_head.build(**options).context.modules() if type(m).__name__ == 'PSPHead'
    )
    assert inner.channels == 8
    assert inner.in_channels == 10
    assert inner.in_index == 3
    assert inner.align_corners is True
    assert inner.norm_cfg == dict(type='GN', num_groups=2)
    options['context'] = dict(
        type='PSPHead', in_channels=8, in_index=2, channels=6, norm_cfg=dict(type='BN')
    )
    head = tiny_head.build(**options)
    inner = next(m for m in head.context.modules() if type(m).__name__ == 'PSPHead')
    assert inner.channels == 6
    assert inner.in_channels == 8
    assert inner.norm_cfg == dict(type='BN')
    _, grads = tiny_head.step(head)
    assert all(grad is not None for grad in grads.values())


# ---- labels ----


def test_labels_are_checked_in_every_iteration_without_waiting():
    labels = tiny_head.label_maps()
    with CountOps() as ops:
        batch_labels(tiny_head.samples(labels), 5, 255)
    assert ops.total
    assert not ops.synchronising
    labels[1, 3, 4] = 77
    for _ in range(30):
        with pytest.raises(ValueError, match=r'labels \[77\] of image_1.png'):
            batch_labels(tiny_head.samples(labels), 5, 255)


def test_padding_with_a_label_is_no_fault_of_the_annotation():
    """The data preprocessor's `seg_pad_val`, where an image is smaller than the others."""
    labels = tiny_head.label_maps(ignored=0.0)
    labels[1, :, -4:] = labels[1, -2:] = 255
    samples = tiny_head.samples(labels)
    samples[1].set_metainfo(dict(img_shape=(17, 19), padding_size=(0, 4, 0, 2)))
    samples[1].set_metainfo(dict(img_shape=(labels.shape[1] - 2, labels.shape[2] - 4)))
    assert torch.equal(batch_labels(samples, 5, 255), labels)
    with pytest.raises(
        ValueError, match=r'labels \[255\] are where .* pads image_1\.png .*seg_pad_val'
    ):
        batch_labels(samples, 5, 254)
    labels[1, 0, 0] = 255
    with pytest.raises(ValueError, match=r'labels \[255\] of image_1\.png .* reduce_zero_label'):
        batch_labels(samples, 5, 254)


def test_label_of_another_ignore_index():
    head = tiny_head.build(ignore_index=100)
    labels = tiny_head.label_maps()
    with pytest.raises(ValueError, match='255'):
        head.loss(tiny_head.features(), tiny_head.samples(labels), None)
    labels[labels == 255] = 100
    losses = head.loss(tiny_head.features(), tiny_head.samples(labels), None)
    same = tiny_head.build()
    labels[labels == 100] = 255
    expected = same.loss(tiny_head.features(), tiny_head.samples(labels), None)
    for key in expected:
        assert losses[key].item() == pytest.approx(expected[key].item(), rel=1e-12), key
    assert torch.equal(head.bank.distributions, same.bank.distributions)


# ---- construction ----


def test_what_a_bank_leaves_out_is_filled_in():
    assert tiny_head.build(bank=dict()).bank.distributions.shape == (tiny_head.NUM_CLASSES, 9, 8)
    given = dict(
        num_distributions=2, channels=6, momentum=0.5, epsilon=0.1, iterations=2,
        assignment='gumbel', update_pixels='all', seed=3,
    )  # fmt: skip
    head = tiny_head.build(bank=given)
    assert head.bank.distributions.shape == (tiny_head.NUM_CLASSES, 2, 6)
    assert {key: getattr(head.bank, key) for key in given} == given
    _, grads = tiny_head.step(head)  # with embeddings of a length of their own
    assert all(grad is not None for grad in grads.values())


def test_no_coarse_and_no_consistency_loss():
    head = tiny_head.build(loss_coarse=None, loss_consistency=None, embedding='pixel')
    before = head.bank.distributions.clone()
    losses, _ = tiny_head.step(head)
    assert sorted(name for name in losses if 'loss' in name) == ['loss_ce']
    assert not torch.equal(before, head.bank.distributions)


def test_a_folded_head_says_that_it_has_no_memory():
    head = tiny_head.build()
    inputs = tiny_head.features()
    head.fold_()
    for method in (head.distribution_map, head.memory_vectors):
        with pytest.raises(RuntimeError, match='MDRLHead has been folded for inference'):
            method(inputs)


def test_several_maps_go_to_the_context_and_the_last_to_the_head():
    """As a config of UPerHead, which selects its maps itself, has them."""
    head = tiny_head.build(in_channels=[8, 10], in_index=[2, 3], context=dict(type='UPerHead'))
    assert (head.in_channels, head.in_index) == (10, 3)
    assert (head.context.head.in_channels, head.context.head.in_index) == ([8, 10], [2, 3])
    losses, grads = tiny_head.step(head)
    assert all(value.isfinite().all() for value in losses.values())
    assert all(grad is not None for grad in grads.values())


def test_a_context_that_is_told_to_select_its_maps():
    maps = dict(in_channels=[4, 6, 8], in_index=[0, 1, 2], input_transform='multiple_select')
    head = tiny_head.build(**maps, context=dict(type='LRASPPHead'))
    assert (head.in_channels, head.in_index, head.input_transform) == (8, 2, None)
    assert {key: getattr(head.context.head, key) for key in maps} == maps


def test_inputs_resized_and_joined():
    """input_transform='resize_concat' works as in any head of MMSegmentation."""
    head = tiny_head.build(in_channels=[8, 10], in_index=[2, 3], input_transform='resize_concat')
    losses, grads = tiny_head.step(head)
    assert all(value.isfinite().all() for value in losses.values())
    assert all(grad is not None for grad in grads.values())


# ---- in the place of another head ----

FOREIGN = [
    cls
    for cls in MODELS.module_dict.values()
    if isinstance(cls, type)
    and issubclass(cls, BaseDecodeHead)
    and not cls.__module__.startswith(('mmseg_cmdl', 'tests'))
]
HOLDERS = ['MDRLHead', 'MCIBIHead', 'DGCWHead']


def _own_options(cls):
    """Names of the arguments that a head has beside those of the base class."""
    mine = cls.__mro__[: cls.__mro__.index(BaseDecodeHead)]
    names = {name for c in mine for name in inspect.signature(c.__init__).parameters}
    return names - set(inspect.signature(BaseDecodeHead.__init__).parameters) - {'args', 'kwargs'}


@pytest.mark.parametrize('name', HOLDERS)
def test_no_option_has_the_name_of_one_that_another_head_brings(name):
    """A config inherits options of the head that was there; none may be taken for one of ours."""
    assert len(FOREIGN) > 30
    own = _own_options(MODELS.get(name))
    shared = {option for cls in FOREIGN for option in own & _own_options(cls)}
    assert shared <= {'fusion'}  # a bool there, a word here


def test_options_of_the_old_head_go_to_the_context():
    ema = dict(ema_channels=8, num_bases=4, num_stages=2, momentum=0.1, concat_input=True)
    head = tiny_head.build_mcibi(context=dict(type='EMAHead'), **ema)
    assert head.context.head.ema_module.momentum == 0.1
    assert head.momentum.start == 0.9
    head = tiny_head.make('DGCWHead', context=dict(type='PSPHead'), pool_scales=(1, 3))
    assert len(head.context.head.psp_modules) == 2
    apc = dict(type='APCHead')
    for fusion, ours in ((True, 'concat'), ('add', 'add')):
        head = tiny_head.build(context=apc, pool_scales=(1, 2), fusion=fusion)
        assert head.fusion == ours
        assert head.context.head.fusion is True
    with pytest.raises(TypeError, match=r"no option \['fusion', 'pool_scales'\]"):
        tiny_head.build(pool_scales=(1, 2), fusion=True)
    with pytest.raises(TypeError, match="no option 'momentum': it is called memory_momentum"):
        tiny_head.build_mcibi(momentum=0.1)


@pytest.mark.parametrize('context', [None, dict(type='PSPHead'), dict(type='NLHead')])
@pytest.mark.parametrize('name', HOLDERS)
def test_what_is_left_out_is_named_once(name, context, monkeypatch):
    """Options that nobody here takes; the context NLHead takes those that it doesn't set itself."""
    lines = []
    monkeypatch.setattr(
        'mmseg_cmdl.models.decode_heads.foreign_options.print_log',
        lambda text, *args: lines.append(text),
    )
    options = dict(in_channels=8, channels=8, num_classes=3, context=context)
    MODELS.build(dict(type=name, **options))
    assert not lines
    given = dict(num_convs=2, kernel_size=3, dilation=1, concat_input=True)
    MODELS.build(dict(type=name, **options, **given))
    (line,) = lines
    assert line.startswith(f'{name}: left out num_convs=2')
    for key, value in given.items():
        taken = key != 'num_convs' and context == dict(type='NLHead')
        assert (f'{key}={value}' in line) != taken
    renamed = name == 'DGCWHead' and context != dict(type='NLHead')
    assert ('DGCWHead has concat_features in place of concat_input' in line) == renamed
