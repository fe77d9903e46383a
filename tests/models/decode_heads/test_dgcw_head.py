import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import NonLocal2d
from mmseg.models.losses import CrossEntropyLoss
from mmseg.registry import MODELS

from tests.models.decode_heads import tiny_head
from tests.reference import dgcw

PPM = dict(type='PSPHead', pool_scales=(1, 2), channels=12)
COMPARED = {
    'DGCW': (dict(type='ChannelWeighting'), 4),
    'GAP': (dict(type='GlobalPoolingContext'), 1),
    'SE': (dict(type='SqueezeExcitation'), 1),
    'NL-H': (dict(type='NonLocal2d', reduction=1), 1),
    'NL-D': (dict(type='NonLocal2d', reduction=1), 4),
    'conv': (dict(type='PointwiseConvs'), 4),
}


def build(**options):
    return tiny_head.make('DGCWHead', **{'concat_features': False, **options})


def features(size=(9, 14), batch=2, dtype=torch.float64):
    sizes = [(4 * size[0], 4 * size[1]), (2 * size[0], 2 * size[1]), size, size]
    return tiny_head.features(batch=batch, dtype=dtype, sizes=sizes)


def test_forward_is_reduction_downsampling_layer_and_classifier():
    """9x14 to 3x4 (rounded up), bilinear; eq. 1-5 from the naive form; logits stay small."""
    head, inputs = build().eval(), features()
    torch.nn.init.normal_(head.conv_seg.weight)
    x = F.relu(head.reduction.bn(F.conv2d(inputs[3], head.reduction.conv.weight)))
    x = F.interpolate(x, size=(3, 4), mode='bilinear', align_corners=False)
    x = dgcw.update(head.layer, x)
    expected = F.conv2d(x, head.conv_seg.weight, head.conv_seg.bias)
    logits = head(inputs)
    assert logits.shape == (2, tiny_head.NUM_CLASSES, 3, 4)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)


def test_concat_features_joins_the_features_of_full_resolution():
    head, inputs = build(concat_features=True).eval(), features()
    related = dgcw.update(
        head.layer,
        F.interpolate(head.reduction(inputs[3]), size=(3, 4), mode='bilinear', align_corners=False),
    )
    related = F.interpolate(related, size=(9, 14), mode='bilinear', align_corners=False)
    expected = head.conv_seg(head.fusion(torch.cat([inputs[3], related], 1)))
    logits = head(inputs)
    assert logits.shape == (2, tiny_head.NUM_CLASSES, 9, 14)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)


def test_downsampling_takes_every_fourth_pixel_of_aligned_corners():
    """97x97, a 769 crop at stride 8, to 25x25."""
    head = build(align_corners=True, layer=dict(type='GlobalPoolingContext')).eval()
    torch.nn.init.zeros_(head.layer.conv.weight)
    torch.nn.init.zeros_(head.layer.conv.bias)
    inputs = [None, None, None, torch.randn(1, 10, 97, 97, dtype=torch.float64)]
    expected = head.reduction(inputs[3])[:, :, ::4, ::4]
    torch.testing.assert_close(head.forward_features(inputs), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (4, 4), (5, 8)], ids=str)
@pytest.mark.parametrize('downsample', [1, 3, 4])
def test_any_size(size, downsample):
    logits = build(downsample=downsample).eval()(features(size))
    assert logits.shape[2:] == tuple(-(-side // downsample) for side in size)


def test_a_context_of_several_maps_is_trained():
    maps = dict(in_channels=list(tiny_head.CHANNELS), in_index=[0, 1, 2, 3])
    head = build(context=dict(type='UPerHead', pool_scales=(1, 2), channels=12, **maps))
    losses = head.loss(features(), tiny_head.samples(tiny_head.label_maps()), None)
    assert set(losses) == {'loss_ce', 'acc_seg'}
    tiny_head.objective(losses).backward()
    assert all(p.grad.any() for p in head.parameters())


@pytest.mark.parametrize(
    ('context', 'kind'),
    [(dict(type='PSPHead'), 'PSPHead'), (dict(type='ASPPHead', dilations=(1, 12)), 'ASPPHead')],
)
def test_context_has_512_channels_a_branch_unless_told(context, kind):
    head = build(context=context)
    assert type(head.context.head).__name__ == kind
    assert (head.context.head.in_channels, head.context.channels) == (10, 512)
    assert head.context.head.norm_cfg == dict(type='BN')
    branches = (
        head.context.head.psp_modules
        if kind == 'PSPHead'
        else [*head.context.head.aspp_modules, head.context.head.image_pool]
    )
    assert {
        module[1].out_channels if isinstance(module, torch.nn.Sequential) else module.out_channels
        for module in branches
    } == {512}
    assert head.reduction.in_channels == 512
    assert build(context=PPM).reduction.in_channels == 12


@pytest.mark.parametrize('name', COMPARED)
def test_compared_contexts(name):
    """Table 2, and 'conv' of table 1; the non-local layer starts as the identity."""
    layer, downsample = COMPARED[name]
    head = build(layer=layer, downsample=downsample, channels=16)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    samples = tiny_head.samples(tiny_head.label_maps())
    for _ in range(2):
        optimizer.zero_grad()
        tiny_head.objective(head.loss(features(), samples, None)).backward()
        optimizer.step()
    assert head(features()).shape[2:] == ((9, 14) if downsample == 1 else (3, 4))
    for key, parameter in head.named_parameters():
        assert parameter.grad.abs().sum() > 0, key
    if name.startswith('NL'):
        assert isinstance(head.layer, NonLocal2d)
    convs = [module for module in head.layer.modules() if isinstance(module, torch.nn.Conv2d)]
    assert convs
    assert {conv.out_channels for conv in convs} == {16}


def test_by_default_it_has_the_papers_width_and_logits_as_fine_as_the_features():
    """The head whose place this one takes had them at that size."""
    head = MODELS.build(dict(type='DGCWHead', in_channels=10, in_index=3, num_classes=3)).eval()
    assert head.reduction.out_channels == head.layer.channels == head.conv_seg.in_channels == 128
    assert (head.layer.norm, head.downsample) == ('sum', 4)
    assert head(features(dtype=torch.float32)).shape == (2, 3, 9, 14)
    assert head.fusion.conv.in_channels == 10 + 128


def test_loss_is_that_of_the_upsampled_logits():
    head, labels = build(), tiny_head.label_maps()
    loss = head.loss(features(), tiny_head.samples(labels), None)['loss_ce']
    logits = F.interpolate(
        head(features()), size=tiny_head.LABEL_SIZE, mode='bilinear', align_corners=False
    )
    expected = CrossEntropyLoss()(logits, labels, ignore_index=255)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-11)
