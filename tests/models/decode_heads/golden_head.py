"""A head with a release's settings and weights, and its forward pass against what was recorded."""

import torch
from mmcv.cnn import ConvModule

from tests.reference import golden


def load_parts(parts, data):
    """Loads the released weights into the modules named by their released prefix."""
    for part, module in parts.items():
        state = golden.to_conv_modules(golden.weights(data, f'{part}.'))
        missing, unexpected = module.load_state_dict(state, strict=False)
        assert not unexpected, unexpected
        assert all('num_batches_tracked' in key for key in missing), missing


def fit_fusion(head, out_channels):
    """Gives the head a fusion of other output channels, as some of the recorded blocks have."""
    channels = head.channels
    if out_channels != channels:
        head.fuse_pixels = ConvModule(
            2 * channels, out_channels, 3, padding=1, norm_cfg=dict(type='BN')
        ).to(head.conv_seg.weight.dtype)


def load(build, name, dtype, **parts):
    """The head that `build` makes, with everything recorded but the memory, and the arrays.

    Args:
        build (Callable): Called with the type, N and the options of the recorded head.
        name (str): File of the arrays.
        dtype (torch.dtype): Of head and arrays.
        **parts: Attribute of the head by the released prefix of its weights.
    """
    data = golden.load(name, dtype)
    num_classes, num, channels = data['sd.memory'].shape
    context = dict(type='FCNHead', num_convs=1) if data['use_context_within_image'] else None
    head = build(
        dtype,
        num,
        num_classes=num_classes,
        channels=channels,
        context=context,
        transform_channels=data['transform_channels'],
        hard_aggregate=data['use_hard_aggregate'],
    )
    fit_fusion(head, data['output'].shape[1])
    parts['bottleneck'] = 'fuse_pixels'
    if context:
        parts.update(self_attention_ms='context_relation', bottleneck_ms='fuse_context')
    load_parts({part: getattr(head, key) for part, key in parts.items()}, data)
    assert {'memory', *parts} == {key.split('.')[0] for key in golden.weights(data)}
    return head.eval(), data


def check_aggregate(head, data, context):
    """Output and gradients of :meth:`aggregate`; `context` is the name of the recorded map."""
    leaves = {key: data[key].requires_grad_() for key in ('feats', 'preds', context) if key in data}
    output = head.aggregate(leaves['feats'], leaves['preds'], leaves.get(context))
    golden.assert_close(output, data['output'])
    grads = torch.autograd.grad(golden.probe(output), list(leaves.values()), allow_unused=True)
    for grad, key in zip(grads, leaves):
        expected = data[f'probe_grad_{key}']
        if grad is None:  # a hard choice passes no gradient on
            assert data['use_hard_aggregate']
            assert key == 'preds'
            assert not expected.any()
            continue
        golden.assert_close(grad, expected, single=1e-4)
    return output
