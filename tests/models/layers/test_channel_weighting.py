import copy

import pytest
import torch
from mmseg.registry import MODELS
from torch import nn

from mmseg_cmdl.models.layers import ChannelWeighting, channel_weighting
from tests import stack
from tests.reference import dgcw, golden
from tests.reference.dispatch import LargestTensor

NORMS = ('sum', 'softmax', 'tanh')
every_norm = pytest.mark.parametrize('norm', NORMS)


def build(channels=6, dtype=torch.float64, **options):
    return MODELS.build(dict(type='ChannelWeighting', channels=channels, **options)).to(dtype)


def inputs(*shape, dtype=torch.float64, scale=1.0):
    return (scale * torch.randn(shape, dtype=torch.float64)).to(dtype).requires_grad_()


def results(form, layer, x):
    """(output, gradients of the input and of every parameter) of one form."""
    output = form(x)
    leaves = [x, *layer.parameters()]
    return output, torch.autograd.grad(golden.probe(output), leaves)


def assert_same(layer, x, atol, relative=False, reference=dgcw.update):
    output, grads = results(layer, layer, x)
    expected, expected_grads = results(lambda x: reference(layer, x), layer, x)
    assert output.shape == x.shape
    for got, want in zip((output, *grads), (expected, *expected_grads)):
        bound = atol * max(1.0, want.abs().max().item()) if relative else atol
        torch.testing.assert_close(got, want, rtol=0, atol=bound)


@every_norm
@pytest.mark.parametrize('size', [(5, 7), (1, 9), (4, 1), (1, 1)], ids=str)
def test_equals_the_naive_form(norm, size):
    """Odd sizes, one row, one column, one pixel; forward and all gradients, to 1e-10."""
    layer = build(norm=norm)
    assert_same(layer, inputs(3, 6, *size), 1e-10)


@every_norm
def test_equals_loops_over_pairs(norm):
    layer = build(4, norm=norm)
    assert_same(layer, inputs(2, 4, 2, 3), 1e-10, reference=dgcw.update_by_loops)


@every_norm
@pytest.mark.parametrize('chunk_size', [1, 2, 5, 34, 35, 1000])
def test_any_chunk_size(norm, chunk_size):
    """Chunks that divide the 35 pixels and that don't."""
    assert_same(build(norm=norm, chunk_size=chunk_size), inputs(3, 6, 5, 7), 1e-10)


@every_norm
@pytest.mark.parametrize('chunk_size', [None, 7])
def test_float32(norm, chunk_size):
    """The real width, against the naive form in float32 and in float64."""
    layer = build(128, torch.float32, norm=norm, chunk_size=chunk_size)
    x = inputs(2, 128, 6, 9, dtype=torch.float32)
    assert_same(layer, x, 1e-5, relative=True)
    double = copy.deepcopy(layer).double()
    output, grads = results(layer, layer, x)
    expected, expected_grads = results(
        lambda x: dgcw.update(double, x), double, x.detach().double().requires_grad_()
    )
    for got, want in zip((output, *grads), (expected, *expected_grads)):
        bound = 1e-5 * max(1.0, want.abs().max().item())
        torch.testing.assert_close(got.double(), want, rtol=0, atol=bound)


@every_norm
@pytest.mark.parametrize('chunk_size', [2, 100])
def test_gradcheck(norm, chunk_size):
    tensors = [inputs(2, 5, 3) for _ in range(3)] + [inputs(3, 3)]
    assert torch.autograd.gradcheck(
        lambda *t: channel_weighting.relation_sum(*t, norm, chunk_size), tensors
    )
    layer = build(3, norm=norm, chunk_size=chunk_size)
    assert torch.autograd.gradcheck(layer, inputs(2, 3, 2, 2))


def test_second_derivative():
    """Through 'tanh', which has one everywhere; those of the others have none where pixels meet."""
    tensors = [inputs(1, 4, 3) for _ in range(3)] + [inputs(3, 3)]
    assert torch.autograd.gradgradcheck(
        lambda *t: channel_weighting.relation_sum(*t, 'tanh', 2), tensors
    )


def tie(layer):
    """Q and K by the same conv: Q_i equals K_i in every channel."""
    layer.key.load_state_dict(layer.query.state_dict())
    return layer


@every_norm
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_equal_pixels_give_finite_values_and_gradients(norm, dtype):
    """Every pair of a constant image, and every (i, i) of any image, is equal in all channels."""
    layer = tie(build(8, dtype, norm=norm))
    constant = torch.ones(2, 8, 3, 4, dtype=dtype).requires_grad_()
    for x in (constant, inputs(2, 8, 3, 4, dtype=dtype)):
        output, grads = results(layer, layer, x)
        for tensor in (output, *grads):
            assert tensor.isfinite().all()
        atol = 1e-10 if dtype == torch.float64 else 1e-4
        assert_same(layer, x, atol, relative=True)
    if norm != 'softmax':  # weights of zero: the residual alone is left
        assert torch.equal(layer(constant), constant)


@pytest.mark.parametrize('distance', [1e-30, 1e-22, 1e-15, 1e-8, 1e-7, 3e-7, 1e-6, 1e-5, 1e-3])
def test_nearly_equal_pixels(distance):
    """float32: squares that underflow, are denormal, lie on either side of the guard."""
    query = torch.zeros(1, 3, 4)
    key = torch.randn(1, 3, 4) * distance
    tensors = [t.requires_grad_() for t in (query, key, torch.randn(1, 3, 4), torch.randn(4, 4))]
    output = channel_weighting.relation_sum(*tensors, 'sum', 2)
    grads = torch.autograd.grad(output.sum(), tensors)
    weights = channel_weighting.channel_weights(query, key)
    plain = (weights * tensors[2].unsqueeze(2) @ tensors[3].t()).relu().sum(2)
    expected = torch.autograd.grad(plain.sum(), tensors)
    torch.testing.assert_close(output, plain, rtol=1e-5, atol=1e-6)
    for got, want in zip(grads, expected):
        assert got.isfinite().all()
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * want.abs().max().item())


@every_norm
@pytest.mark.parametrize('half', stack.HALVES)
@pytest.mark.parametrize('half_input', [False, True])
def test_autocast_computes_in_float32(norm, half, half_input):
    """Inputs of scale 100: squared differences and sums that float16 doesn't hold."""
    layer = build(128, torch.float32, norm=norm)
    x = inputs(2, 128, 7, 9, dtype=half if half_input else torch.float32, scale=100.0)
    reference = x.detach().float().requires_grad_()
    with torch.autocast('cpu', dtype=half):
        output = layer(x)
        assert output.dtype == torch.float32
    grads = torch.autograd.grad(output.square().mean(), [x, *layer.parameters()])
    expected = layer(reference)
    expected_grads = torch.autograd.grad(expected.square().mean(), [reference, *layer.parameters()])
    assert output.isfinite().all()
    assert torch.equal(output, expected)
    for got, want in zip(grads, expected_grads):
        assert got.isfinite().all()
        torch.testing.assert_close(got, want.to(got.dtype), rtol=1e-6, atol=0)


@pytest.mark.parametrize('half', stack.HALVES)
def test_module_in_half_precision(half):
    """Convs in half precision, the pairs in float32, the result in the module's own type."""
    layer = build(16, torch.float32).to(half)
    x = inputs(1, 16, 3, 5, dtype=half)
    output = layer(x)
    output.float().sum().backward()
    assert output.dtype == x.grad.dtype == half
    expected = copy.deepcopy(layer).float()(x.detach().float())
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=0.05)


@every_norm
def test_memory_is_bounded(norm):
    """No tensor, forward or backward, is larger than one chunk: 1/300 of [C, hw, hw] here."""
    layer = build(32, torch.float32, norm=norm, chunk_size=2)
    x = inputs(1, 32, 24, 25, dtype=torch.float32)
    with LargestTensor() as mode:
        layer(x).sum().backward()
    assert mode.largest <= 2 * 600 * 32 * 4
    with LargestTensor() as mode:
        build(32, torch.float32, norm=norm)(x).sum().backward()
    assert mode.largest <= 1 << 21


def test_saves_nothing_that_grows_with_pairs():
    """Between forward and backward, tensors of [B, C, h, w] and the weights alone are held."""
    layer, x = build(8, chunk_size=4), inputs(2, 8, 10, 12)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(x)
    assert saved
    assert max(t.numel() for t in saved) <= x.numel()


@stack.needs_export
@every_norm
def test_exports_with_dynamic_shapes(norm):
    layer = build(norm=norm).eval()
    dims = {
        0: torch.export.Dim('batch', min=1, max=16),
        2: torch.export.Dim('h', min=2, max=64),
        3: torch.export.Dim('w', min=2, max=64),
    }
    program = torch.export.export(layer, (inputs(2, 6, 3, 4).detach(),), dynamic_shapes=(dims,))
    traced = torch.jit.trace(layer, inputs(2, 6, 3, 4).detach())
    for size in ((3, 6, 5, 7), (1, 6, 2, 2), (2, 6, 9, 4)):
        x = inputs(*size).detach()
        for exported in (program.module(), traced):
            torch.testing.assert_close(exported(x), layer(x), rtol=0, atol=1e-11)


def test_no_images():
    layer = build()
    assert layer(inputs(0, 6, 4, 5)).shape == (0, 6, 4, 5)


def test_convs_and_state():
    layer = build(10)
    shapes = {key: tuple(value.shape) for key, value in layer.state_dict().items()}
    square = (10, 10, 1, 1)
    assert shapes == {
        **{f'{name}.weight': square for name in ('query', 'key', 'value', 'g1', 'g2')},
        **{f'{name}.bias': (10,) for name in ('query', 'key', 'value')},
    }
    assert "norm='sum'" in repr(layer)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(norm='l2'), "norm must be one of .*'sum', 'softmax', 'tanh'.* got 'l2'"),
        (dict(chunk_size=0), 'chunk_size must be at least 1 .* got 0'),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ChannelWeighting(8, **options)


@pytest.mark.parametrize('shape', [(2, 5, 3, 3), (6, 3, 3)])
def test_a_map_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r'channels=6\) needs a map of shape \[B, 6, h, w\], got'):
        build()(torch.zeros(shape))


def test_what_stands_on_g1_acts():
    """A hook and a parametrization of the first conv of g, which is called and not read."""
    torch.manual_seed(0)
    layer = ChannelWeighting(4).double()
    doubled = copy.deepcopy(layer)
    with torch.no_grad():
        doubled.g1.weight.mul_(2)
    layer.g1.register_forward_hook(lambda module, inputs, output: 2 * output)
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x), doubled(x), rtol=0, atol=1e-10)
    spectral = nn.utils.spectral_norm(ChannelWeighting(4).double().g1)
    other = ChannelWeighting(4).double()
    other.g1 = spectral
    for _ in range(2):  # the second backward pass failed on a weight that was read
        other(x).sum().backward()
