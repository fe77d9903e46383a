import pytest
import torch
from mmseg.models.utils import SelfAttentionBlock
from mmseg.registry import MODELS

from mmseg_cmdl.models.layers import RelationAttention
from tests.reference import golden, mdrl

OPTIONS = (
    'share_key_query',
    'key_query_num_convs',
    'value_out_num_convs',
    'key_query_norm',
    'value_out_norm',
    'matmul_norm',
    'with_out_project',
)


def _load_golden(data, dtype):
    """The block with the recorded settings and weights; plain convs get a bias of zero."""
    block = RelationAttention(
        data['query_feats'].shape[1],
        data['key_feats'].shape[1],
        data['transform_channels'],
        data['output'].shape[1],
        **{name: data[name] for name in OPTIONS},
    )
    state = golden.weights(data)
    with_norm = data['key_query_norm'] and data['value_out_norm']
    state = golden.to_conv_modules(state) if with_norm else dict(state)
    for name in block.state_dict():
        if name.endswith('num_batches_tracked'):
            state[name] = torch.tensor(0)
        elif name.endswith('project.bias'):
            state[name] = torch.zeros(block.state_dict()[name].shape)
    block.load_state_dict(state)
    return block.to(dtype).eval()


@pytest.mark.parametrize('name', golden.names('attention_*'))
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_golden(name, dtype):
    data = golden.load(name, dtype)
    block = _load_golden(data, dtype)
    query, key = data['query_feats'].requires_grad_(), data['key_feats'].requires_grad_()
    output = block(query, key)
    golden.assert_close(output, data['output'])
    grads = torch.autograd.grad(golden.probe(output), (query, key))
    for grad, leaf in zip(grads, ('query_feats', 'key_feats')):
        golden.assert_close(grad, data[f'probe_grad_{leaf}'], single=1e-4)


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(key_query_num_convs=1, value_out_num_convs=2),
        dict(share_key_query=True),
        dict(key_query_norm=False, value_out_norm=False),
        dict(matmul_norm=False, with_out_project=False),
        dict(norm_cfg=dict(type='GN', num_groups=2), act_cfg=dict(type='GELU')),
    ],
    ids=str,
)
def test_equals_the_naive_form(options):
    channels = 8 if options.get('share_key_query') else 6
    block = RelationAttention(8, channels, 4, 10, **options).double().eval()
    for parameter in block.parameters():  # plain out convs start at zero
        torch.nn.init.normal_(parameter, std=0.5)
    query = torch.randn(2, 8, 3, 5, dtype=torch.float64, requires_grad=True)
    key = torch.randn(2, channels, 4, 2, dtype=torch.float64, requires_grad=True)
    output, expected = block(query, key), mdrl.relate(block, query, key)
    assert output.shape == (2, 10, 3, 5)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-11)
    leaves = [query, key, *block.parameters()]
    for got, want in zip(
        torch.autograd.grad(golden.probe(output), leaves, allow_unused=True),
        torch.autograd.grad(golden.probe(expected), leaves, allow_unused=True),
    ):
        assert got is not None
        torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


def test_large_products_stay_finite():
    """Products of 1e8 are far beyond float32's exponent; softmax is taken from the largest."""
    block = RelationAttention(4, 4, 4, 4, key_query_norm=False, value_out_norm=False)
    query = (torch.randn(1, 4, 3, 3) * 1e4).requires_grad_()
    output = block(query, torch.randn(1, 4, 3, 3) * 1e4)
    output.sum().backward()
    assert output.isfinite().all()
    assert query.grad.isfinite().all()


def test_is_the_hosts_block_and_registered():
    block = MODELS.build(
        dict(type='RelationAttention', query_channels=8, key_channels=6, transform_channels=4)
    )
    assert isinstance(block, SelfAttentionBlock)
    assert block.out_channels == 8  # defaults to the query's
    assert len(block.key_project) == len(block.query_project) == 2
    assert block.key_project[0].conv.bias is None
    assert block.key_project[0].with_norm


def test_shared_projection_needs_equal_channels():
    with pytest.raises(ValueError, match='query_channels=8 and key_channels=6'):
        RelationAttention(8, 6, 4, share_key_query=True)
