import copy

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmseg.models.segmentors import CascadeEncoderDecoder, EncoderDecoder
from mmseg.registry import MODELS
from torch import nn

from mmseg_cmdl.models.segmentors import CARCascadeEncoderDecoder, CAREncoderDecoder
from mmseg_cmdl.utils import labels_at_feature_size
from tests.models.segmentors import tiny_segmentor
from tests.models.segmentors.test_every_head import _build as build_with
from tests.reference import car, mdrl

head, build = tiny_segmentor.head, tiny_segmentor.build
K = tiny_segmentor.K


@pytest.mark.parametrize('formulation', ['paper', 'released'])
@pytest.mark.parametrize('name', ['FCNHead', 'DAHead', 'OCRHead', 'SegformerHead'])
def test_losses_are_those_of_the_equations(name, formulation):
    model = build_with(name, formulation=formulation).double().train()
    tiny_segmentor.train_step(model)  # so that the conv isn't the identity any more
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0
    images = tiny_segmentor.images(3).double()
    samples = tiny_segmentor.samples()
    losses, seen = tiny_segmentor.watched(model, lambda: model.loss(images, samples))
    maps = seen['conv_seg']  # what leaves the conv is classified, and what the losses see
    expected = torch.einsum('dc,bchw->bdhw', model.car.linear.weight[:, :, 0, 0], seen['0'])
    torch.testing.assert_close(maps, expected)
    assert not torch.allclose(maps, seen['0'])
    small = mdrl.nearest_labels(tiny_segmentor.label_maps(), maps.shape[2:])
    features = maps.permute(0, 2, 3, 1).flatten(0, 2)
    expected = car.losses(features, small.flatten(), K, formulation)
    for key, value in expected.items():
        assert losses[f'car.loss_{key}'].item() == pytest.approx(value.item(), rel=1e-9), key


# ---- the linear conv ----


def test_starts_as_the_identity_and_one_line_is_enough():
    """The same seed: the plain segmentor's weights and predictions, and one key more."""
    plain, model = build(head(), 'EncoderDecoder'), build(head())
    state = model.state_dict()
    assert state.keys() - plain.state_dict().keys() == {'car.linear.weight'}
    assert torch.equal(state['car.linear.weight'][..., 0, 0], torch.eye(8))
    assert torch.equal(tiny_segmentor.logits(model), tiny_segmentor.logits(plain))
    assert isinstance(model, EncoderDecoder)
    names = [type(loss).__name__ for loss in model.car.losses]
    assert names == [
        'IntraClassCenterToPixelLoss',
        'InterClassCenterToCenterLoss',
        'InterClassCenterToPixelLoss',
    ]
    assert [loss.threshold for loss in model.car.losses[1:]] == [0.5, 0.25]


def test_without_the_linear_conv():
    model = build(head(), linear=False).double()
    plain = build(head(), 'EncoderDecoder', seed=4).double()
    losses = tiny_segmentor.train_step(model)
    assert losses['car.loss_intra_c2p'] > 0
    assert model.state_dict().keys() == plain.state_dict().keys()
    tiny_segmentor.assert_folds_into(plain, model, 0)


@pytest.mark.parametrize('max_channels', [5, 7, 8, 512])
def test_fewer_channels_out(max_channels):
    """Folded exactly, and a plain checkpoint still predicts the same where K directions fit."""
    model = build(head(), max_channels=max_channels).double()
    channels = min(8, max_channels)
    assert model.car.linear.weight.shape == (channels, 8, 1, 1)
    assert model.decode_head.conv_seg.weight.shape == (K, channels, 1, 1)
    rows = model.car.linear.weight[:, :, 0, 0]
    torch.testing.assert_close(rows @ rows.t(), torch.eye(channels).double(), rtol=0, atol=1e-6)
    tiny_segmentor.train_step(model)
    plain = build(head(), 'EncoderDecoder', seed=4).double()
    tiny_segmentor.assert_folds_into(plain, model, 1e-12)
    other = build(head(), 'EncoderDecoder', seed=6).double()
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(
        tiny_segmentor.logits(model), tiny_segmentor.logits(other), rtol=0, atol=1e-12
    )
    losses = tiny_segmentor.train_step(model)
    assert losses['car.loss_intra_c2p'].isfinite()


def test_a_plain_checkpoint_with_too_few_directions_is_refused():
    model = build(head(), max_channels=4)
    with pytest.raises(ValueError, match='max_channels to at least 5'):
        model.load_state_dict(build(head(), 'EncoderDecoder').state_dict())


def test_a_checkpoint_of_its_own_loads_unchanged():
    model, other = build(head()), build(head(), seed=5)
    tiny_segmentor.train_step(model)
    state = copy.deepcopy(model.state_dict())
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())
    assert torch.equal(tiny_segmentor.logits(model), tiny_segmentor.logits(other))


# ---- options ----


def test_losses_with_weights_thresholds_and_formulations_of_their_own():
    losses = [
        dict(type='InterClassCenterToPixelLoss', threshold=0.1, loss_weight=2.0),
        dict(type='IntraClassCenterToPixelLoss', formulation='paper'),
    ]
    model = build(head(), losses=losses, formulation='released')
    c2p, intra = model.car.losses
    assert (c2p.threshold, c2p.loss_weight, c2p.formulation) == (0.1, 2.0, 'released')
    assert intra.formulation == 'paper'
    got = {key for key in tiny_segmentor.train_step(model) if key.startswith('car')}
    assert got == {'car.loss_inter_c2p', 'car.loss_intra_c2p'}
    single = build(head(), losses=losses[1])
    assert len(single.car.losses) == 1


def test_no_losses_leave_the_architecture_alone():
    """Row R2 of table 1: 1x1 convs and nothing else."""
    model = build(head(), losses=[], linear=False, pointwise=['convs'])
    assert not any(key.startswith('car') for key in tiny_segmentor.train_step(model))


def test_a_loss_of_ones_own_is_called_with_features_labels_and_centers():
    @MODELS.register_module()
    class MyCenterLoss(nn.Module):
        loss_name = 'loss_mine'

        def forward(self, features, labels, centers, counts, ignore_index=255):
            assert features.shape[1] == centers.shape[1] == 8
            assert len(features) == len(labels)
            assert counts.sum() == (labels != ignore_index).sum()
            return centers.square().sum()

    try:
        model = build(
            head(), losses=[dict(type='MyCenterLoss'), dict(type='IntraClassCenterToPixelLoss')]
        )
        losses = tiny_segmentor.train_step(model)
        assert {'car.loss_mine', 'car.loss_intra_c2p'} <= set(losses)
        assert model.car.linear.weight.grad.abs().sum() > 0
    finally:
        MODELS.module_dict.pop('MyCenterLoss')


def test_of_several_maps_the_last_of_the_largest_is_taken():
    """A head may call its classifier more than once, as MCIBIHead does on its memory."""
    model = build(head())
    car_, classifier = model.car, model.decode_head.conv_seg
    g = torch.Generator().manual_seed(0)
    shapes = [(2, 4, 5), (2, 6, 7), (2, 6, 7), (2, 3, 3), (K, 9, 9), (2, 7, 5)]
    maps = [torch.randn(b, classifier.in_channels, h, w, generator=g) for b, h, w in shapes]
    labels = torch.randint(K, (2, 12, 14), generator=g)

    def losses(given):
        with car_.capture():
            for x in given:
                classifier(x)
        return {name: value.item() for name, value in car_.loss(labels).items()}

    assert losses(maps) == losses([maps[2]])
    assert losses(maps) != losses([maps[1]])


def test_label_resize():
    labels = torch.arange(7 * 9).reshape(1, 7, 9)
    for mode in ('nearest', 'nearest-exact'):
        for size in ((3, 4), (7, 9), (2, 2), (14, 5)):
            expected = nn.functional.interpolate(labels[:, None].double(), size, mode=mode)[:, 0]
            assert torch.equal(labels_at_feature_size(labels, size, mode), expected.long())
    values = [
        tiny_segmentor.train_step(build(head(), label_resize=mode))['car.loss_inter_c2p']
        for mode in ('nearest', 'nearest-exact')
    ]
    assert values[0] != values[1]


@pytest.mark.parametrize(
    ('kind', 'names', 'convs'),
    [
        ('NLHead', ['convs.1', 'conv_cat'], ['convs.1.conv', 'conv_cat.conv']),
        ('UPerHead', ['fpn_bottleneck'], ['fpn_bottleneck.conv']),
        ('FCNHead', 'convs', ['convs.0.conv', 'convs.1.conv']),
        ('DAHead', ['pam_out_conv', 'cam_out_conv'], ['pam_out_conv.conv', 'cam_out_conv.conv']),
        ('OCRHead', ['bottleneck'], ['bottleneck.conv']),
    ],
)
def test_pointwise(kind, names, convs):
    model = build_with(kind, pointwise=names).double()
    found = [
        key for key in convs if model.regularized_head.get_submodule(key).kernel_size == (1, 1)
    ]
    assert found == convs
    sizes = {
        key: m.kernel_size
        for key, m in model.regularized_head.named_modules()
        if isinstance(m, nn.Conv2d) and key not in [*convs, 'car.linear']
    }
    plain = build_with(kind, 'plain', seed=1).double()
    assert (
        sizes
        == {key: m.kernel_size for key, m in plain.decode_head.named_modules() if key in sizes}
        or kind == 'OCRHead'
    )
    tiny_segmentor.train_step(model)
    tiny_segmentor.assert_folds_into(plain, model)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (
            dict(pointwise=['convs.7']),
            r"no sub-module 'convs.7'; its convs larger than 1x1 are "
            r"\['convs.0.conv', 'convs.1.conv', 'conv_cat.conv'\]",
        ),
        (dict(pointwise=['conv_seg']), "'conv_seg' of FCNHead has no conv larger than 1x1"),
        (dict(label_resize='bilinear'), "label_resize must be one of .* got 'bilinear'"),
        (dict(max_channels=0), 'max_channels must be at least 1, got 0'),
        (dict(formulation='papers'), "formulation must be 'paper' or 'released', got 'papers'"),
        (dict(position='concat'), r"position must be one of \('classifier', 'released'\), got"),
        (dict(pool_size=0), 'pool_size must be at least 1, got 0'),
    ],
)
def test_refusals_say_what_to_do(options, words):
    with pytest.raises(ValueError, match=words):
        build(head(), **options)


def test_a_conv_that_changes_the_size_cannot_become_pointwise():
    model = build(head(), 'EncoderDecoder')
    model.decode_head.convs[0].conv.padding = (0, 0)
    from mmseg_cmdl.models.segmentors.pointwise import make_pointwise_

    with pytest.raises(ValueError, match='changes the size of the map'):
        make_pointwise_(model.decode_head, ['convs.0'])


# ---- training, and nothing else ----


def test_prediction_captures_nothing_and_uses_the_linear_conv():
    model = build(head())
    expected = tiny_segmentor.logits(model)
    assert model.car._features == []
    with torch.no_grad():
        model.car.linear.weight.mul_(2)
    bias = model.decode_head.conv_seg.bias.detach()[:, None, None]
    torch.testing.assert_close(tiny_segmentor.logits(model) - bias, 2 * (expected - bias))
    tiny_segmentor.train_step(model)
    assert model.car._features == []  # let go after the step


def test_cascade_regularizes_the_last_head():
    model = build_with('OCRHead')
    assert isinstance(model, CARCascadeEncoderDecoder)
    assert isinstance(model, CascadeEncoderDecoder)
    assert not isinstance(model, CAREncoderDecoder)
    assert type(model.regularized_head).__name__ == 'OCRHead'
    losses = tiny_segmentor.train_step(model)
    assert {'decode_0.loss_ce', 'decode_1.loss_ce', 'car.loss_intra_c2p'} <= set(losses)
    assert model.car.linear.weight.grad.abs().sum() > 0


@pytest.mark.parametrize('linear', [True, False])
def test_losses_see_the_features_before_the_dropout(linear):
    """Of features that are the same inside each class no variance is left; logits are dropped."""
    model = build(head(dropout_ratio=0.5), linear=linear).double().train()
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, K, (2, 6, 5), generator=generator)
    vectors = torch.rand(K, 8, generator=generator, dtype=torch.float64) + 1
    features = vectors[labels].permute(0, 3, 1, 2).contiguous()
    seen = []
    model.decode_head.conv_seg.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    torch.manual_seed(0)
    with model.car.capture():
        model.decode_head.cls_seg(features)
    losses = model.car.loss(labels)
    assert losses['loss_intra_c2p'].item() < 1e-20
    dropped = (seen[0] == 0).all(dim=(2, 3))
    assert 0 < dropped.sum() < dropped.numel()  # whole channels of an image, and not all
    kept = (~dropped)[:, :, None, None].expand_as(features)
    torch.testing.assert_close(seen[0][kept], 2 * features[kept])
    # what another branch drops isn't taken for what is classified
    with model.car.capture():
        model.decode_head.dropout(features)
        model.decode_head.conv_seg(features + 1)
    assert model.car.loss(labels)['loss_intra_c2p'].item() < 1e-20
    assert torch.equal(seen[1], features + 1)


@pytest.mark.parametrize(('kind', 'stages'), [
    ('CAREncoderDecoder', 1), ('CARCascadeEncoderDecoder', 2),
])  # fmt: skip
def test_the_conv_follows_the_head(kind, stages):
    """Recipes that name the head (lr_mult of 'head', freezing all but it) mean CAR's conv too."""
    heads, options = tiny_segmentor.head(), {}
    if stages == 2:
        heads, options = [heads, tiny_segmentor.head('OCRHead', ocr_channels=4)], dict(num_stages=2)
    model = tiny_segmentor.build(heads, kind, **options)
    conv = model.car.linear.weight
    wrapper = build_optim_wrapper(model, dict(
        type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.01),
        paramwise_cfg=dict(custom_keys={'head': dict(lr_mult=10.0)}),
    ))  # fmt: skip
    rates = {id(p): group['lr'] for group in wrapper.param_groups for p in group['params']}
    assert rates[id(conv)] == pytest.approx(0.1)
    assert rates[id(model.backbone.mix[0].weight)] == 0.01
    names = [name for name, p in model.named_parameters() if p is conv]
    assert len(names) == 1
    assert names[0].startswith('decode_head.')
    assert any(p is conv for p in model.decode_head.parameters())
    # checkpoints stay as they were, through wrappers and copies as well
    assert {'car.linear.weight'} == {key for key in model.state_dict() if 'car' in key}
    outer = torch.nn.ModuleDict(dict(module=copy.deepcopy(model)))
    assert {'module.car.linear.weight'} == {key for key in outer.state_dict() if 'car' in key}
    with torch.no_grad():
        conv.mul_(3)
    state = {f'module.{key}': value.clone() for key, value in model.state_dict().items()}
    assert not any(outer.load_state_dict(state))
    assert torch.equal(outer['module'].car.linear.weight, conv)
    without = {
        key: value for key, value in model.state_dict().items() if key != 'car.linear.weight'
    }
    assert not any(model.load_state_dict(without))  # a plain checkpoint
    assert torch.equal(model.car.linear.weight.flatten(1), torch.eye(8))


SAN = dict(
    image_encoder=dict(type='VisionTransformer'), text_encoder=dict(type='CLIPTextEncoder'),
    asymetric_input=True, encoder_resolution=0.5,
    decode_head=dict(type='SideAdapterCLIPHead', num_classes=3, san_cfg={}, maskgen_cfg={}),
)  # fmt: skip
ONE_HEAD = dict(backbone=dict(type='FourMaps'), decode_head=tiny_segmentor.head())


@pytest.mark.parametrize(('kind', 'config', 'said'), [
    ('CAREncoderDecoder', SAN, r"of MultimodalEncoderDecoder, which CAR is not for: .* Keep type="
     r"'MultimodalEncoderDecoder', or use CAR on a config of EncoderDecoder"),
    ('CARCascadeEncoderDecoder', SAN, 'of MultimodalEncoderDecoder, which CAR is not for'),
    ('CAREncoderDecoder', dict(ONE_HEAD, num_stages=2),
     "'num_stages'.* of CascadeEncoderDecoder: write type='CARCascadeEncoderDecoder'"),
    ('CARCascadeEncoderDecoder', ONE_HEAD, "needs num_stages.* write type='CAREncoderDecoder'"),
    ('CAREncoderDecoder', dict(ONE_HEAD, max_channel=4),
     r"no option \['max_channel'\]. CAR has no such option either; did you mean max_channels\?"),
], ids=['san', 'san-cascade', 'cascade', 'no-cascade', 'misspelt'])  # fmt: skip
def test_the_config_of_another_segmentor_is_refused_in_a_sentence(kind, config, said):
    with pytest.raises(TypeError, match=said) as error:
        MODELS.build(dict(config, type=kind))
    assert str(error.value).startswith(kind)
    assert '__init__' not in str(error.value)
    assert '\n' not in str(error.value)
