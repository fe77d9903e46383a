"""CAR in the place of the authors' code: linear conv with bias, losses, conv + norm + ReLU."""

from collections import Counter

import pytest
import torch
from torch import nn

from mmseg_cmdl.deployment import InferenceModel
from tests.models.segmentors import every_head, tiny_segmentor
from tests.models.segmentors.test_every_head import _build as build_with
from tests.reference import car, mdrl

K = tiny_segmentor.K
PLACES = {
    'FCNHead': ['conv_cat'],
    'NLHead': ['conv_cat'],
    'CCHead': ['conv_cat'],
    'ASPPHead': ['bottleneck'],
    'CPHead': ['bottleneck'],
    'CAAHead': ['bottleneck'],
    'UPerHead': ['fpn_bottleneck'],
    'OCRHead': ['object_context_block.bottleneck'],
    'DAHead': ['pam_out_conv', 'cam_out_conv'],
}
# those that are 3x3 without CAR's "A"
SPATIAL = {
    name: [] if name in ('CAAHead', 'OCRHead') else places for name, places in PLACES.items()
}


def build(name, **options):
    """After a step of training, so that conv, bias and norms aren't as they start; no dropout."""
    model = build_with(
        name, position='released', pointwise=SPATIAL[name], max_channels=7, **options
    ).double()
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    tiny_segmentor.train_step(model)
    with torch.no_grad():
        for linear in model.car.linears:
            linear.bias.normal_(generator=torch.Generator().manual_seed(3))
    return model


def linear_of(conv, x):
    weight = conv.weight[:, :, 0, 0]
    return torch.einsum('dc,bchw->bdhw', weight, x) + conv.bias[:, None, None]


def pooled(x, size):
    """Means over squares; those at the right and lower edge may be smaller."""
    rows = [
        [x[:, :, i : i + size, j : j + size].mean(dim=(2, 3)) for j in range(0, x.shape[3], size)]
        for i in range(0, x.shape[2], size)
    ]
    return torch.stack([torch.stack(row, dim=2) for row in rows], dim=2)


@pytest.mark.parametrize('name', PLACES)
def test_conv_losses_and_classifier_stand_in_the_authors_order(name):
    """concat, linear conv with bias, losses; 1x1 conv, norm, ReLU, classifier; in float64."""
    pool_size = 2 if name in ('UPerHead', 'OCRHead', 'FCNHead') else 1
    model = build(name, pool_size=pool_size)
    assert model.car.places == PLACES[name]
    images, samples = tiny_segmentor.images(3).double(), tiny_segmentor.samples()
    labels = tiny_segmentor.label_maps()
    losses, seen = tiny_segmentor.watched(model, lambda: model.loss(images, samples))
    expected = Counter()
    for i, conv in enumerate(model.car.linears):
        maps = pooled(linear_of(conv, seen[str(i)]), pool_size)
        small = mdrl.nearest_labels(labels, maps.shape[2:])
        found = car.losses(maps.permute(0, 2, 3, 1).flatten(0, 2), small.flatten(), K)
        expected.update({key: value.item() for key, value in found.items()})
    got = {key: value.item() for key, value in losses.items() if key.startswith('car.')}
    assert got == {f'car.loss_{key}': pytest.approx(v, rel=1e-9) for key, v in expected.items()}

    model.eval()
    with torch.no_grad():
        _, seen = tiny_segmentor.watched(model, lambda: tiny_segmentor.logits(model))
        total = 0
        for i, (conv, place) in enumerate(zip(model.car.linears, PLACES[name])):
            module = model.regularized_head.get_submodule(place)
            x = torch.einsum(
                'kd,bdhw->bkhw', module.conv.weight[:, :, 0, 0], linear_of(conv, seen[str(i)])
            )
            norm = module.norm
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            x = (x - norm.running_mean[:, None, None]) * scale[:, None, None]
            total = total + (x + norm.bias[:, None, None]).clamp(min=0)
    torch.testing.assert_close(seen['conv_seg'], total, rtol=0, atol=1e-12)


@pytest.mark.parametrize('name', PLACES)
def test_folds_into_the_plain_head_exactly(name):
    model = build(name)
    plain = build_with(name, 'plain', seed=1).double()
    tiny_segmentor.assert_folds_into(plain, model)


def test_starts_as_in_the_authors_code_and_adds_only_its_conv():
    """Glorot's uniform rule, no bias yet; what it enters takes what leaves it."""
    plain = build_with('FCNHead', 'plain').state_dict()
    model = build_with('FCNHead', position='released', max_channels=7)
    state = model.state_dict()
    assert state.keys() - plain.keys() == {'car.linear.weight', 'car.linear.bias'}
    weight, bound = state['car.linear.weight'], (6 / (10 + 8 + 7)) ** 0.5
    assert weight.shape == (7, 18, 1, 1)  # of the concatenation, 10 + 8
    assert 0.9 * bound < weight.abs().max() <= bound
    assert not state['car.linear.bias'].any()
    assert state['decode_head.conv_cat.conv.weight'].shape == (8, 7, 3, 3)
    others = state.keys() - {'car.linear.weight', 'car.linear.bias'}
    assert {key for key in others if plain[key].shape != state[key].shape} == {
        'decode_head.conv_cat.conv.weight'
    }
    two = build_with('DAHead', position='released').state_dict()
    assert {key for key in two if 'car' in key} == {
        f'car.linear.{i}.{kind}' for i in range(2) for kind in ('weight', 'bias')
    }


def test_the_branches_of_danet_have_convs_of_their_own():
    model = build_with('DAHead', position='released').double()
    losses = tiny_segmentor.train_step(model)
    assert losses['car.loss_intra_c2p'] > 0
    first, second = model.car.linears
    assert first.weight.grad.any()
    assert second.weight.grad.any()
    assert not torch.equal(first.weight.grad, second.weight.grad)


@pytest.mark.parametrize('name', ['FCNHead', 'NLHead'])
def test_without_concatenation_it_is_the_last_conv(name):
    """The authors' FCN and self-attention: conv, (attention,) CAR, conv, classifier."""
    options = dict(every_head.config(name), concat_input=False)
    model = tiny_segmentor.build(options, position='released')
    assert model.car.places == ['convs.1']
    assert model.car.linear.weight.shape == (8, 8, 1, 1)


def test_a_copy_and_an_export_keep_the_conv():
    model = build('DAHead')
    expected = tiny_segmentor.logits(model)
    inference = InferenceModel(model)
    images = tiny_segmentor.images(9).double()
    torch.testing.assert_close(inference(images), expected, rtol=0, atol=1e-10)
    with torch.no_grad():
        for linear in model.car.linears:  # not the copy's
            linear.weight.zero_()
    torch.testing.assert_close(inference(images), expected, rtol=0, atol=1e-10)
    assert not torch.allclose(tiny_segmentor.logits(model), expected)


def test_a_checkpoint_of_its_own_loads_and_a_plain_one_is_refused():
    model, other = build('UPerHead'), build('UPerHead', seed=5)
    other.load_state_dict(model.state_dict())
    assert torch.equal(tiny_segmentor.logits(other), tiny_segmentor.logits(model))
    with pytest.raises(ValueError, match=r"without CAR's linear conv .* position='classifier'"):
        model.load_state_dict(build_with('UPerHead', 'plain').state_dict())


def test_what_a_bias_cannot_be_merged_into_is_refused():
    """Zeros at the border of a 3x3 conv, and a norm that takes the mean of the image itself."""
    with pytest.raises(ValueError, match=r"conv_cat of FCNHead .* pointwise=\['conv_cat'\] it"):
        build_with('FCNHead', position='released').folded_state_dict()
    options = dict(position='released', pointwise=['conv_cat'])
    norm = dict(norm_cfg=dict(type='GN', num_groups=2))
    model = tiny_segmentor.build(dict(every_head.config('FCNHead'), **norm), **options)
    with pytest.raises(ValueError, match='through its GroupNorm; through a batch norm it could'):
        model.folded_state_dict()
    model = tiny_segmentor.build(dict(every_head.config('FCNHead'), norm_cfg=None), **options)
    model = model.double()
    torch.nn.init.normal_(model.car.linear.bias)
    plain = tiny_segmentor.build(
        dict(every_head.config('FCNHead'), norm_cfg=None), 'EncoderDecoder', seed=4
    ).double()
    tiny_segmentor.assert_folds_into(plain, model)


def test_pooling_is_for_the_usual_position_too():
    values = [
        tiny_segmentor.train_step(tiny_segmentor.build(tiny_segmentor.head(), pool_size=size))
        for size in (1, 2)
    ]
    assert values[1]['car.loss_intra_c2p'] < 0.8 * values[0]['car.loss_intra_c2p']


@pytest.mark.parametrize(
    ('head', 'words'),
    [
        (
            dict(num_convs=0, concat_input=False, channels=10),
            "position='released' is for .*UPerHead, with a conv .* not for this FCNHead",
        ),
        (
            dict(kind='PSPHead', pool_scales=(1, 2)),
            "and not for this PSPHead: use position='classifier'",
        ),
    ],
)
def test_heads_without_such_a_place_are_refused(head, words):
    with pytest.raises(ValueError, match=words):
        tiny_segmentor.build(tiny_segmentor.head(**head), position='released')
