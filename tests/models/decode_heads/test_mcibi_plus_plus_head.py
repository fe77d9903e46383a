"""MCIBIPlusPlusHead: recorded numbers of the release, passes, warm-up, what is refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.models.decode_heads import golden_head, tiny_head
from tests.reference import golden

DTYPES = [torch.float64, torch.float32]


def build(dtype=torch.float64, **options):
    return tiny_head.make('MCIBIPlusPlusHead', dtype, **options)


def load_classifier(conv_module, classifier, data, prefix):
    """decoder_*.{conv1,bn1,conv2} into a ConvModule and the classifier."""
    state = golden.weights(data, f'{prefix}.')
    own = {f'conv.{k[6:]}': v for k, v in state.items() if k.startswith('conv1.')}
    own.update({f'bn.{k[4:]}': v for k, v in state.items() if k.startswith('bn1.')})
    conv_module.load_state_dict(own, strict=False)
    classifier.load_state_dict({k[6:]: v for k, v in state.items() if k.startswith('conv2.')})


def memory_parts(head):
    parts = {
        'memory_module.self_attention': head.relation,
        'memory_module.bottleneck': head.fuse_pixels,
    }
    if head.downsample is not None:
        parts['memory_module.downsample_before_sa'] = nn.ModuleDict(
            {'conv': head.downsample.conv, 'bn': head.downsample.bn}
        )
    return parts


def set_memory(head, data):
    head.bank.statistics.copy_(data['sd.memory_module.memory'])
    head.bank.noise.copy_(data['eps'])


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('name', golden.names('mcibipp_forward_*'))
def test_golden_forward(name, dtype):
    data = golden.load(name, dtype)
    num_classes, channels = data['eps'].shape
    within = data['use_context_within_image']
    head = build(
        dtype,
        num_classes=num_classes,
        channels=channels,
        context=dict(type='FCNHead', num_convs=1) if within else None,
        transform_channels=data['transform_channels'],
        hard_aggregate=data['use_hard_aggregate'],
        downsample_before_sa=data['downsample_before_sa'],
    )
    key = 'memory_output' if within else 'output'
    golden_head.fit_fusion(head, data[key].shape[1])
    parts = memory_parts(head)
    if within:
        if data['context_transform_channels'] != head.context_relation.channels:
            pytest.fail('transform channels of the context')
        parts['self_attention'] = head.context_relation
    golden_head.load_parts(parts, data)
    set_memory(head, data)
    head.eval()
    output = golden_head.check_aggregate(head, data, 'feats_cwi')
    atol = 1e-9 if dtype == torch.float64 else 1e-5 * data['output'].abs().max().item()
    torch.testing.assert_close(output, data['output_released'], rtol=0, atol=max(1e-6, atol))


def golden_step_head(name, dtype):
    """The head and auxiliary head of a recorded step, with its weights."""
    data = golden.load(name, dtype)
    num_classes, channels = data['eps'].shape
    common = dict(num_classes=num_classes, channels=channels)
    context = None
    if data['context_within_image']:
        dilations = tuple(int(rate) for rate in data['aspp_dilations'])
        context = dict(type='ASPPHead', dilations=dilations)
    head = build(
        dtype,
        **common,
        in_channels=data['backbone_3'].shape[1],
        in_index=1,
        context=context,
        transform_channels=data['transform_channels'],
        bank=dict(type='GaussianBank', momentum=data['momentum']),
    )
    auxiliary = tiny_head.make(
        'FCNHead',
        dtype,
        **common,
        in_channels=data['backbone_2'].shape[1],
        in_index=0,
        num_convs=1,
        concat_input=False,
        loss_decode=dict(type='CrossEntropyLoss', loss_weight=data['loss_scale_aux']),
    )
    golden_head.load_parts(
        {**memory_parts(head), 'bottleneck': nn.ModuleDict(head.bottleneck.named_children())},
        data,
    )
    load_classifier(head.coarse_classifier[0], head.coarse_classifier[2], data, 'decoder_pr')
    load_classifier(head.final_conv, head.conv_seg, data, 'decoder_cls')
    if context:
        load_classifier(head.context_classifier[0], head.context_classifier[2], data, 'decoder_cwi')
        golden_head.load_parts({'self_attention': head.context_relation}, data)
        aspp = head.context.head
        part = 'context_within_image_module'
        for i, module in enumerate(aspp.aspp_modules):
            golden_head.load_parts({f'{part}.parallel_branches.{i}': module}, data)
        state = golden.weights(data, f'{part}.global_branch.')
        aspp.image_pool[1].load_state_dict(
            {('conv.' if k[0] == '1' else 'bn.') + k[2:]: v for k, v in state.items()}, strict=False
        )
        state = golden.to_conv_modules(golden.weights(data, f'{part}.bottleneck.'))
        # the pooled branch comes last there and first here
        pooled, branches = slice(-channels, None), slice(None, -channels)
        kernel = state['conv.weight']
        state['conv.weight'] = torch.cat([kernel[:, pooled], kernel[:, branches]], dim=1)
        aspp.bottleneck.load_state_dict(state, strict=False)
    state = golden.weights(data, 'auxiliary_decoder.')
    auxiliary.convs[0].load_state_dict(
        {{'0': 'conv.', '1': 'bn.'}[k[0]] + k[2:]: v for k, v in state.items() if k[0] in '01'},
        strict=False,
    )
    auxiliary.conv_seg.load_state_dict({k[2:]: v for k, v in state.items() if k[0] == '4'})
    head.bank.statistics.copy_(data['memory_before'])
    head.bank.noise.copy_(data['eps'])
    return head, auxiliary, data


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('name', golden.names('mcibipp_step_*'))
def test_golden_step(name, dtype):
    head, auxiliary, data = golden_step_head(name, dtype)
    maps = [data['backbone_2'].requires_grad_(), data['backbone_3'].requires_grad_()]

    head.eval()
    with torch.no_grad():
        once = head(maps)
        head.num_passes = 2
        twice = head(maps)
        head.num_passes = 1
    for got, key in ((once, 'eval_logits'), (twice, 'eval_logits_second_pass')):
        golden.assert_close(got, data[key])

    head.train()
    with torch.no_grad():
        # statistics move with each pass in training mode, so a copy takes this one
        logits = copy.deepcopy(head)(maps)
    logits = F.interpolate(logits, data['labels'].shape[1:], mode='bilinear', align_corners=False)
    golden.assert_close(logits, data['seg_logits'])
    samples = tiny_head.samples(data['labels'])
    losses = head.loss(maps, samples, None)
    aux = auxiliary.train().loss(maps, samples, None)
    names = {'loss_pr': 'coarse_loss_ce', 'loss_cls': 'loss_ce', 'loss_cwi': 'context_loss_ce'}
    found = {key: losses[ours] for key, ours in names.items() if ours in losses}
    found['loss_aux'] = aux['loss_ce']
    # cross entropy in MMSegmentation is divided by all pixels, here by the labelled ones
    labelled = (data['labels'] != 255).double().mean().to(dtype)
    exact, total = dtype == torch.float64, 0
    for key, value in found.items():
        value = value / labelled
        total = total + value
        tolerance = dict(rtol=0, atol=1e-9) if exact else dict(rtol=1e-5, atol=0)
        torch.testing.assert_close(value, value.new_tensor(data[key]), **tolerance)
    assert len(found) == (4 if data['context_within_image'] else 3)
    assert float(total) == pytest.approx(data['loss_total'], rel=1e-9 if exact else 1e-5)
    wanted = {
        'grad_backbone_2': maps[0],
        'grad_backbone_3': maps[1],
        'grad_decoder_cls_conv2_weight': head.conv_seg.weight,
        'grad_decoder_pr_conv2_weight': head.coarse_classifier[2].weight,
    }
    for grad, key in zip(torch.autograd.grad(total, list(wanted.values())), wanted):
        golden.assert_close(grad, data[key], single=1e-4)
    atol = 1e-9 if exact else 1e-6
    torch.testing.assert_close(head.bank.statistics, data['memory_after'], rtol=0, atol=atol)


def test_dropout_is_not_the_same_in_each_iteration():
    """The release seeds PyTorch's own generator in each forward pass; here nobody's is touched."""
    head = build(dropout_ratio=0.5)
    inputs = tiny_head.features()
    weights = torch.rand(1, 5, 2, 2, dtype=torch.float64)
    before = torch.get_rng_state()
    head.read_memory(weights)
    assert torch.equal(torch.get_rng_state(), before)
    first, second = (head(inputs) for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize('context', [None, dict(type='PSPHead', channels=6)])
def test_warm_up_reads_the_memory_by_the_labels(context):
    """One-hot weights of the labels, own weights where there is none; then own weights."""
    head = build(warmup_iters=1, context=context)
    seen = []
    read = head.read_memory
    head.read_memory = lambda weights: (seen.append(weights.detach()), read(weights))[1]
    labels = tiny_head.label_maps()
    for _ in range(2):
        head.loss(tiny_head.features(), tiny_head.samples(labels), None)
    warm, own = seen
    small = F.interpolate(labels[:, None].double(), own.shape[2:], mode='nearest')[:, 0].long()
    known = small < 5
    assert known.any()
    assert not known.all()
    expected = F.one_hot(small.clamp(max=4), 5).movedim(-1, 1).double()
    torch.testing.assert_close(warm[:, :, :][known[:, None].expand_as(warm)],
                               expected[known[:, None].expand_as(warm)])  # fmt: skip
    # nothing but the weights that the loss sees differ: the layers have not been changed
    assert own.max() < 1
    assert ((own.sum(dim=1) - 1).abs() < 1e-12).all()
    head.eval()
    head.loss(tiny_head.features(), tiny_head.samples(labels), None)
    assert seen[-1].max() < 1  # never in eval


PYRAMID = dict(in_channels=[tiny_head.CHANNELS[1]], in_index=[1], out_channels=7)


def test_pyramid_brings_the_fused_map_to_the_finer_size():
    """What is classified is the pyramid's; the map of vectors stays at the size of the pixels."""
    head = build(context=dict(type='PSPHead', channels=6), pyramid=PYRAMID)
    inputs = tiny_head.features(3)
    losses, _ = tiny_head.step(head)
    assert {'loss_ce', 'coarse_loss_ce', 'context_loss_ce'} <= set(losses)
    head.eval()
    with torch.no_grad():
        pixels, _, context, own = head._maps(inputs)
        top = head.augment(pixels, own.softmax(dim=1), context)
        expected = head.cls_seg(head.pyramid([inputs[1]], top))
        logits = head(inputs)
        predicted, vectors = head.predict_and_embed(inputs)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    assert logits.shape == (2, 5, *tiny_head.SIZES[1])
    assert predicted.shape[2:] == vectors.shape[1:3] == tiny_head.SIZES[-1]
    assert head.distribution_map(inputs)[1].shape == (2, *tiny_head.SIZES[-1])


def test_class_weights_come_from_the_context_or_from_the_pixels():
    for option in ('context', 'coarse'):
        head = build(context=dict(type='PSPHead', channels=6), weights_from=option).eval()
        head.bank.statistics.copy_(torch.rand(5, 2))
        inputs = tiny_head.features(3)
        with torch.no_grad():
            pixels, coarse, context, own = head._maps(inputs)
            weights = {'context': own, 'coarse': coarse}[option].softmax(dim=1)
            expected = head.cls_seg(head.augment(pixels, weights, context))
            torch.testing.assert_close(head(inputs), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(('options', 'told'), [
    (dict(), None),
    (dict(relate_context=False, loss_context=None), 'relate_context, loss_context without effect'),
    (dict(context_kernel_size=3, context=dict(type='PSPHead')), None),
])  # fmt: skip
def test_options_of_a_context_that_is_not_there_are_told(options, told, monkeypatch):
    lines = []
    monkeypatch.setattr(
        'mmseg_cmdl.models.decode_heads.mcibi_plus_plus_head.print_log',
        lambda text, *args: lines.append(text),
    )
    build(**options)
    assert len(lines) == bool(told)
    assert all(told in line for line in lines)


def test_convs_before_the_classifiers_have_the_kernels_that_are_given():
    head = build(
        context=dict(type='PSPHead', channels=6), coarse_kernel_size=3, context_kernel_size=5
    )
    assert head.coarse_classifier[0].kernel_size == (3, 3)
    assert head.context_classifier[0].kernel_size == (5, 5)
    assert head.final_conv.kernel_size == (1, 1)
    assert head(tiny_head.features(3)).shape == (2, 5, *tiny_head.SIZES[-1])


# other options: tests/deployment/test_export.py
@pytest.mark.parametrize('options', [
    dict(context=dict(type='PSPHead', channels=6), relate_context=False, final_kernel_size=3),
    dict(context=dict(type='PSPHead', channels=6), pyramid=PYRAMID, num_passes=2),
])  # fmt: skip
def test_folded_head_predicts_the_same(options):
    head = build(**options)
    tiny_head.step(head)
    head.eval()
    inputs = tiny_head.features(3)
    with torch.no_grad():
        before = head(inputs)
        after = head.fold_()(inputs)
    size = tiny_head.SIZES[1 if 'pyramid' in options else -1]
    assert before.shape == (2, 5, *size)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-12)
