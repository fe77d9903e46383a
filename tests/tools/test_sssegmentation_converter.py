"""tools/model_converters/sssegmentation.py on small checkpoints under the released names.

The released networks themselves: tests/conversion/test_released_models.py.
"""

import re
import sys

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from mmseg.registry import MODELS

from mmseg_cmdl import conversion
from tests import tiny
from tests.paths import TOOLS, load_script, python
from tests.reference import golden

SCRIPT = TOOLS / 'model_converters' / 'sssegmentation.py'
CONTEXTS = {
    'plain': None,
    'aspp': dict(type='ASPPHead', dilations=(1, 2, 3)),
    'ppm': dict(type='PSPHead', pool_scales=(1, 2)),
}
C, IN, AUX = 12, 64, 5  # channels of the head, of its input, of the auxiliary


@pytest.fixture(scope='module')
def tool():
    return load_script(SCRIPT)


def _model(context, num_classes, transform_channels):
    model = tiny.config().model
    del model['data_preprocessor']
    norm_cfg = dict(type='BN', requires_grad=True)
    model.backbone.update(
        out_indices=(0, 1, 2, 3), strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4),
        contract_dilation=True,
    )  # fmt: skip
    shared = dict(
        num_classes=num_classes, norm_cfg=norm_cfg, act_cfg=dict(type='ReLU'), align_corners=False
    )
    model.decode_head = dict(
        type='MCIBIHead', in_channels=IN, in_index=3, channels=C,
        transform_channels=transform_channels, **shared,
    )  # fmt: skip
    if context is not None:
        model.decode_head.context = context
    model.auxiliary_head = dict(
        type='FCNHead', in_channels=32, in_index=2, channels=AUX, num_convs=1, concat_input=False,
        **shared,
    )  # fmt: skip
    return model


def _block(state, name, conv, shape, norm=None):
    """A conv without bias and its norm, as numbers `conv` and `norm` of a Sequential."""
    norm = conv + 1 if norm is None else norm
    state[f'{name}.{conv}.weight'] = torch.randn(shape) * (shape[1] * shape[2] * shape[3]) ** -0.5
    state[f'{name}.{norm}.weight'] = torch.rand(shape[0]) + 0.5
    state[f'{name}.{norm}.bias'] = torch.randn(shape[0])
    state[f'{name}.{norm}.running_mean'] = torch.randn(shape[0])
    state[f'{name}.{norm}.running_var'] = torch.rand(shape[0]) + 0.5
    state[f'{name}.{norm}.num_batches_tracked'] = torch.tensor(3)


def _released(kind):
    """A whole checkpoint: memory module of the recorded numbers, everything else random."""
    data = golden.load('mcibi_forward_context_soft', torch.float32)
    state = {f'memory_module.{key}': value for key, value in golden.weights(data).items()}
    num_classes = len(state['memory_module.memory'])
    backbone = MODELS.build(_model(None, num_classes, 6)['backbone'])
    for key, value in backbone.state_dict().items():
        state[f'backbone_net.{key}'] = torch.rand_like(value) if value.dim() == 1 else value
    _block(state, 'bottleneck', 0, (C, IN, 3, 3))
    for stage in ('decoder_stage1', 'decoder_stage2'):
        _block(state, stage, 0, (C, C, 1, 1))
        state[f'{stage}.4.weight'] = torch.randn(num_classes, C, 1, 1)
        state[f'{stage}.4.bias'] = torch.randn(num_classes)
    _block(state, 'auxiliary_decoder', 0, (AUX, 32, 3, 3))
    state['auxiliary_decoder.4.weight'] = torch.randn(num_classes, AUX, 1, 1)
    state['auxiliary_decoder.4.bias'] = torch.randn(num_classes)
    within = 'context_within_image_module'
    if kind == 'aspp':
        for index, size in enumerate((1, 3, 3)):
            _block(state, f'{within}.parallel_branches.{index}', 0, (C, IN, size, size))
        _block(state, f'{within}.global_branch', 1, (C, IN, 1, 1))
        _block(state, f'{within}.bottleneck', 0, (C, 4 * C, 3, 3))
    elif kind == 'ppm':
        for index in range(2):
            _block(state, f'{within}.branches.{index}', 1, (C, IN, 1, 1))
        _block(state, f'{within}.bottleneck', 0, (C, IN + 2 * C, 3, 3))
    return state, data


SLOPE = 0.0  # of the activations on the negative side; 0.01 in the released ResNets for LIP


def _apply(state, name, x, conv=0, dilation=1):
    """conv, norm and activation of `_block` in evaluation mode."""
    weight = state[f'{name}.{conv}.weight']
    x = F.conv2d(x, weight, padding=dilation * (weight.shape[2] // 2), dilation=dilation)
    norm = [
        state[f'{name}.{conv + 1}.{key}']
        for key in ('running_mean', 'running_var', 'weight', 'bias')
    ]
    return F.leaky_relu(F.batch_norm(x, *norm), SLOPE)


def _attend(state, name, query, key):
    projected = key
    for index in range(2):
        query = _apply(state, f'{name}.query_project.{index}', query)
        projected = _apply(state, f'{name}.key_project.{index}', projected)
    value = _apply(state, f'{name}.value_project', key).flatten(2)
    products = query.flatten(2).transpose(1, 2) @ projected.flatten(2) * query.shape[1] ** -0.5
    gathered = (products.softmax(-1) @ value.transpose(1, 2)).transpose(1, 2)
    return _apply(state, f'{name}.out_project', gathered.unflatten(2, query.shape[2:]))


def _released_logits(state, x, kind):
    """The released model after its backbone, from the description of its parts."""
    size, within = x.shape[2:], 'context_within_image_module'
    context = None
    if kind == 'aspp':
        parts = [
            _apply(state, f'{within}.parallel_branches.{i}', x, dilation=(1, 2, 3)[i])
            for i in range(3)
        ]
        pooled = _apply(state, f'{within}.global_branch', x.mean((2, 3), keepdim=True), 1)
        context = torch.cat([*parts, pooled.expand(-1, -1, *size)], 1)
        context = _apply(state, f'{within}.bottleneck', context)
    elif kind == 'ppm':
        parts = [x]
        for index, scale in enumerate((1, 2)):
            pooled = _apply(state, f'{within}.branches.{index}', F.adaptive_avg_pool2d(x, scale), 1)
            parts.append(F.interpolate(pooled, size, mode='bilinear', align_corners=False))
        context = _apply(state, f'{within}.bottleneck', torch.cat(parts, 1))
    pixels = _apply(state, 'bottleneck', x)

    def classify(stage, x):
        return F.conv2d(
            _apply(state, stage, x), state[f'{stage}.4.weight'], state[f'{stage}.4.bias']
        )

    weights = classify('decoder_stage1', pixels).softmax(1)
    memory = torch.einsum('bkhw,kc->bchw', weights, state['memory_module.memory'][:, 0])
    related = _attend(state, 'memory_module.self_attention', pixels, memory)
    out = _apply(state, 'memory_module.bottleneck', torch.cat([pixels, related], 1))
    if context is not None:
        related = _attend(state, 'memory_module.self_attention_ms', pixels, context)
        out = _apply(state, 'memory_module.bottleneck_ms', torch.cat([related, out], 1))
    return classify('decoder_stage2', out)


def _case(kind, tmp_path, wrap=True):
    """(config path, checkpoint path, released state, recorded numbers)."""
    state, data = _released(kind)
    if kind == 'plain':
        state = {key: value for key, value in state.items() if '_ms.' not in key}
    config = Config(
        dict(
            default_scope='mmseg',
            model=_model(
                CONTEXTS[kind], len(state['memory_module.memory']), data['transform_channels']
            ),
            custom_imports=dict(imports=['mmseg_cmdl'], allow_failed_imports=False),
        )
    )
    config.dump(tmp_path / 'config.py')
    content = {f'module.{key}': value for key, value in state.items()} if wrap else state
    torch.save(dict(model=content, epoch=130) if wrap else content, tmp_path / 'released.pth')
    return str(tmp_path / 'config.py'), str(tmp_path / 'released.pth'), state, data


def _in_double(config, converted, state):
    """The converted model for inference, and the released state."""
    model = MODELS.build(Config.fromfile(config).model)
    load_checkpoint(model, converted, strict=True)
    floats = {key: value.double() for key, value in state.items() if value.is_floating_point()}
    return model.double().eval(), {**state, **floats}


@pytest.mark.parametrize('kind', CONTEXTS)
def test_converted_model_is_the_released_one(kind, tmp_path):
    """Through the whole head, and, inside it, the recorded numbers of the memory module."""
    config, released, state, data = _case(kind, tmp_path, wrap=kind != 'ppm')
    target = str(tmp_path / 'out' / 'converted.pth')
    conversion.convert(config, released, target)
    model, state = _in_double(config, target, state)
    inputs = model.backbone(torch.randn(2, 3, 64, 48, dtype=torch.float64))
    expected = _released_logits(state, inputs[3], kind)
    assert expected.std() > 0.1
    torch.testing.assert_close(model.decode_head(inputs), expected, rtol=0, atol=1e-9)
    auxiliary = F.conv2d(
        _apply(state, 'auxiliary_decoder', inputs[2]),
        state['auxiliary_decoder.4.weight'],
        state['auxiliary_decoder.4.bias'],
    )
    torch.testing.assert_close(model.auxiliary_head(inputs), auxiliary, rtol=0, atol=1e-9)

    if kind != 'plain':
        output = model.decode_head.aggregate(
            *(data[key].double() for key in ('feats', 'preds', 'feats_ms'))
        )
        torch.testing.assert_close(output, data['output'].double(), rtol=0, atol=1e-5)
    assert model.decode_head.bank.filled.all()


def _leaky_logits(tmp_path, monkeypatch, **options):
    """(converted, released) logits of a network with LeakyReLU(0.01), and what was done."""
    monkeypatch.setattr(sys.modules[__name__], 'SLOPE', 0.01)
    config, released, state, _ = _case('aspp', tmp_path)
    target = str(tmp_path / 'converted.pth')
    done = conversion.convert(config, released, target, **options)
    model, state = _in_double(options.get('out_config', config), target, state)
    inputs = model.backbone(torch.randn(1, 3, 64, 48, dtype=torch.float64))
    return model.decode_head(inputs), _released_logits(state, inputs[3], 'aspp'), done


def test_an_activation_that_no_tensor_shows_is_taken_from_the_table(tmp_path, monkeypatch):
    """A model known by name is refused with ReLU, and gets its LeakyReLU by --out-config."""
    config, released, *_ = _case('aspp', tmp_path)
    target = str(tmp_path / 'converted.pth')
    name = 'mcibi_deeplabv3_r50_lip'
    lip = dict(conversion.RELEASED[name].facts)
    lip['decode_head.context.dilations'] = [1, 2, 3]  # of the small network
    for key in ('data_preprocessor.mean', 'data_preprocessor.std', 'data_preprocessor.bgr_to_rgb'):
        lip.pop(key)  # it has no preprocessor that normalises
    monkeypatch.setitem(conversion.RELEASED, name, conversion.RELEASED[name]._replace(facts=lip))
    with pytest.raises(conversion.ConversionError, match=r"act_cfg=\{'type': 'LeakyReLU'"):
        conversion.convert(config, released, target, model=name)
    assert not (tmp_path / 'converted.pth').exists()
    fitted = str(tmp_path / 'fitted.py')
    ours, theirs, done = _leaky_logits(tmp_path, monkeypatch, model=name, out_config=fitted)
    assert set(done.changed) == {
        'decode_head.act_cfg',
        'decode_head.context.act_cfg',
        'auxiliary_head.act_cfg',
    }
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    # which the same weights with ReLU are not
    monkeypatch.setitem(conversion.RELEASED, name, conversion.RELEASED[name]._replace(facts={}))
    ours, theirs, _ = _leaky_logits(tmp_path, monkeypatch, model=name)
    assert (ours - theirs).abs().max() > 1e-3


def test_an_unknown_checkpoint_is_converted_with_what_cannot_be_known(tool, tmp_path, capsys):
    config, released, *_ = _case('aspp', tmp_path)
    tool.main([config, released, str(tmp_path / 'converted.pth')])
    said = capsys.readouterr().out
    assert 'not a released model by name' in said
    assert "decode_head.act_cfg={'type': 'ReLU'}" in said
    assert 'decode_head.context.dilations=[1, 2, 3]' in said
    assert 'classes and their order' in said
    with pytest.raises(SystemExit, match='mcibi_r50 is none of the released models'):
        tool.main([config, released, str(tmp_path / 'out.pth'), '--model', 'mcibi_r50'])


def test_widths_come_from_the_checkpoint(tool, tmp_path, capsys):
    """An auxiliary head of another width is refused by number; --out-config writes what fits."""
    config, released, *_ = _case('aspp', tmp_path)
    wider, target = str(tmp_path / 'wider.py'), tmp_path / 'converted.pth'
    cfg = Config.fromfile(config)
    cfg.model.auxiliary_head.channels = 7
    cfg.model.decode_head.update(channels=16, transform_channels=5, num_classes=9)
    cfg.model.auxiliary_head.num_classes = 9
    cfg.dump(wider)
    with pytest.raises(SystemExit, match=rf'auxiliary_head.channels={AUX}'):
        tool.main([wider, released, str(target)])
    assert not target.exists()
    fitted = str(tmp_path / 'new' / 'fitted.py')
    tool.main([wider, released, str(target), '--out-config', fitted])
    assert f'model.auxiliary_head.channels={AUX}' in capsys.readouterr().out
    load_checkpoint(MODELS.build(Config.fromfile(fitted).model), str(target), strict=True)
    # or by hand
    options = [
        f'model.auxiliary_head.channels={AUX}',
        f'model.decode_head.channels={C}',
        'model.decode_head.transform_channels=8',
        'model.decode_head.num_classes=6',
        'model.auxiliary_head.num_classes=6',
    ]
    target.unlink()
    tool.main([wider, released, str(target), '--cfg-options', *options])
    assert target.exists()


def test_backbone_keeps_its_weights():
    state = conversion.convert_state({'backbone_net.layer1.0.bn1.weight': torch.arange(3.0)})
    assert state['backbone.layer1.0.bn1.weight'].tolist() == [0, 1, 2]


def test_rows_of_zeros_are_classes_never_seen():
    memory = torch.randn(4, 1, 6)
    memory[2] = 0
    state = conversion.convert_state({'memory_module.memory': memory})
    assert state['decode_head.bank.filled'].tolist() == [True, True, False, True]
    assert torch.equal(state['decode_head.bank.features'], memory[:, 0])


def _refusal(tmp_path, change, kind='aspp'):
    config, released, state, _ = _case(kind, tmp_path, wrap=False)
    change(state)
    torch.save(state, released)
    with pytest.raises(conversion.ConversionError) as error:
        conversion.convert(config, released, str(tmp_path / 'converted.pth'))
    assert not (tmp_path / 'converted.pth').exists()
    return str(error.value)


def test_what_does_not_fit_is_refused_by_its_first_key(tmp_path):
    def extra(state):
        state['fpn_convs.0.weight'] = torch.zeros(1)
        state['lateral_convs.0.weight'] = torch.zeros(1)

    assert 'fpn_convs.0.weight has no place' in _refusal(tmp_path, extra)
    text = _refusal(tmp_path, lambda s: s.pop('decoder_stage2.4.bias'))
    assert 'decode_head.conv_seg.bias' in text
    text = _refusal(tmp_path, lambda s: s.update({'decoder_stage1.4.bias': torch.zeros(3)}))
    assert re.search(r'coarse_classifier\.2\.bias is \(3,\)', text)
    text = _refusal(tmp_path, lambda s: s.update({'memory_module.memory': torch.zeros(6, 2, 12)}))
    assert 'memory_module.memory is (6, 2, 12)' in text

    def of_a_deeper_backbone(state):
        state['backbone_net.layer1.2.conv1.weight'] = torch.zeros(8, 8, 3, 3)

    assert 'backbone.layer1.2.conv1.weight' in _refusal(tmp_path, of_a_deeper_backbone)


def test_a_checkpoint_of_another_context_is_refused(tmp_path):
    for folder in ('a', 'b'):
        (tmp_path / folder).mkdir()
    config, *_ = _case('ppm', tmp_path / 'a')
    _, released, *_ = _case('aspp', tmp_path / 'b')
    with pytest.raises(conversion.ConversionError, match='aspp_modules'):
        conversion.convert(config, released, str(tmp_path / 'converted.pth'))


def test_old_checkpoints_without_counters(tmp_path):
    config, released, state, _ = _case('plain', tmp_path)
    torch.save({key: value for key, value in state.items() if 'num_batches' not in key}, released)
    conversion.convert(config, released, str(tmp_path / 'converted.pth'))


def test_command_line(tool, tmp_path):
    config, released, *_ = _case('plain', tmp_path)
    target = str(tmp_path / 'converted.pth')
    done = python(SCRIPT, config, released, target)
    assert done.returncode == 0, done.stderr
    assert '6 of 6 classes in memory' in done.stdout
    with pytest.raises(SystemExit, match=r'^error: there is no file none\.pth$'):
        tool.main([config, 'none.pth', target])
