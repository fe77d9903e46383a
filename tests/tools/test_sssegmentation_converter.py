"""tools/model_converters/sssegmentation.py on synthetic checkpoints under the released names."""

import importlib.util
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from mmseg.registry import MODELS

from tests.paths import TOOLS, child_environment
from tests.reference import golden

SCRIPT = TOOLS / 'model_converters' / 'sssegmentation.py'
CONTEXTS = {
    'plain': None,
    'aspp': dict(type='ASPPHead', dilations=(1, 2, 3)),
    'ppm': dict(type='PSPHead', pool_scales=(1, 2)),
}
C, IN, AUX = 12, 64, 5  # channels of the head, of its input, of the auxiliary


@pytest.fixture(scope='module')
def converter():
    spec = importlib.util.spec_from_file_location('sssegmentation_converter', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _model(context, num_classes, transform_channels):
    norm_cfg = dict(type='BN', requires_grad=True)
    return dict(
        type='EncoderDecoder',
        backbone=dict(
            type='ResNetV1c',
            depth=18,
            stem_channels=8,
            base_channels=8,
            num_stages=4,
            out_indices=(0, 1, 2, 3),
            strides=(1, 2, 1, 1),
            dilations=(1, 1, 2, 4),
            norm_cfg=norm_cfg,
        ),
        decode_head=dict(
            type='MCIBIHead',
            in_channels=IN,
            in_index=3,
            channels=C,
            num_classes=num_classes,
            transform_channels=transform_channels,
            norm_cfg=norm_cfg,
            align_corners=False,
            **({} if context is None else dict(context=context)),
        ),
        auxiliary_head=dict(
            type='FCNHead',
            in_channels=32,
            in_index=2,
            channels=AUX,
            num_convs=1,
            concat_input=False,
            num_classes=num_classes,
            norm_cfg=norm_cfg,
            align_corners=False,
        ),
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )


def _block(state, name, conv, shape, norm=None):
    """A conv without bias and its norm, as numbers `conv` and `norm` of a Sequential."""
    norm = conv + 1 if norm is None else norm
    state[f'{name}.{conv}.weight'] = torch.randn(shape) * (shape[1] * shape[2] * shape[3]) ** -0.5
    state[f'{name}.{norm}.weight'] = torch.rand(shape[0]) + 0.5
    state[f'{name}.{norm}.bias'] = torch.randn(shape[0])
    state[f'{name}.{norm}.running_mean'] = torch.randn(shape[0])
    state[f'{name}.{norm}.running_var'] = torch.rand(shape[0]) + 0.5
    state[f'{name}.{norm}.num_batches_tracked'] = torch.tensor(3)


def _released(kind, fixture):
    """A whole checkpoint: memory module of the fixture, everything else random."""
    data = golden.load(fixture, torch.float32)
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


def _apply(state, name, x, conv=0, dilation=1):
    """conv, norm and ReLU of `_block` in evaluation mode."""
    weight = state[f'{name}.{conv}.weight']
    x = F.conv2d(x, weight, padding=dilation * (weight.shape[2] // 2), dilation=dilation)
    norm = [
        state[f'{name}.{conv + 1}.{key}']
        for key in ('running_mean', 'running_var', 'weight', 'bias')
    ]
    return F.batch_norm(x, *norm).relu()


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


FIXTURES = {
    'plain': 'mcibi_forward_context_soft',
    'aspp': 'mcibi_forward_context_soft',
    'ppm': 'mcibi_forward_context_soft',
}


def _case(kind, tmp_path, wrap=True):
    """(config path, checkpoint path, released state, recorded numbers)."""
    state, data = _released(kind, FIXTURES[kind])
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


@pytest.mark.parametrize('kind', CONTEXTS)
def test_converted_model_is_the_released_one(converter, kind, tmp_path):
    """Through the whole head, and, inside it, the recorded numbers of the memory module."""
    config, released, state, data = _case(kind, tmp_path, wrap=kind != 'ppm')
    target = str(tmp_path / 'out' / 'converted.pth')
    converter.convert(config, released, target)
    model = MODELS.build(Config.fromfile(config).model)
    load_checkpoint(model, target, strict=True)
    model.double().eval()
    state = {
        key: value.double() if value.is_floating_point() else value for key, value in state.items()
    }
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


def test_backbone_keeps_its_weights(converter):
    state = converter.convert_state({'backbone_net.layer1.0.bn1.weight': torch.arange(3.0)})
    assert state['backbone.layer1.0.bn1.weight'].tolist() == [0, 1, 2]


def test_rows_of_zeros_are_classes_never_seen(converter):
    memory = torch.randn(4, 1, 6)
    memory[2] = 0
    state = converter.convert_state({'memory_module.memory': memory})
    assert state['decode_head.bank.filled'].tolist() == [True, True, False, True]
    assert torch.equal(state['decode_head.bank.features'], memory[:, 0])


def _refusal(converter, tmp_path, change, kind='aspp'):
    config, released, state, _ = _case(kind, tmp_path, wrap=False)
    change(state)
    torch.save(state, released)
    with pytest.raises(converter.ConversionError) as error:
        converter.convert(config, released, str(tmp_path / 'converted.pth'))
    assert not (tmp_path / 'converted.pth').exists()
    return str(error.value)


def test_what_does_not_fit_is_refused_by_its_first_key(converter, tmp_path):
    def extra(state):
        state['downsample_backbone.0.weight'] = torch.zeros(1)
        state['norm_layers.0.weight'] = torch.zeros(1)

    assert 'downsample_backbone.0.weight' in _refusal(converter, tmp_path, extra)
    text = _refusal(converter, tmp_path, lambda s: s.pop('decoder_stage2.4.bias'))
    assert 'decode_head.conv_seg.bias' in text
    text = _refusal(
        converter, tmp_path, lambda s: s.update({'decoder_stage1.4.bias': torch.zeros(3)})
    )
    assert re.search(r'coarse_classifier\.2\.bias is \(3,\)', text)
    text = _refusal(
        converter, tmp_path, lambda s: s.update({'memory_module.memory': torch.zeros(6, 2, 12)})
    )
    assert 'memory_module.memory is (6, 2, 12)' in text

    def of_a_deeper_backbone(state):
        state['backbone_net.layer1.2.conv1.weight'] = torch.zeros(8, 8, 3, 3)

    assert 'backbone.layer1.2.conv1.weight' in _refusal(converter, tmp_path, of_a_deeper_backbone)


def test_a_checkpoint_of_another_context_is_refused(converter, tmp_path):
    for folder in ('a', 'b'):
        (tmp_path / folder).mkdir()
    config, *_ = _case('ppm', tmp_path / 'a')
    _, released, *_ = _case('aspp', tmp_path / 'b')
    with pytest.raises(converter.ConversionError, match='aspp_modules'):
        converter.convert(config, released, str(tmp_path / 'converted.pth'))


def test_old_checkpoints_without_counters(converter, tmp_path):
    config, released, state, _ = _case('plain', tmp_path)
    torch.save({key: value for key, value in state.items() if 'num_batches' not in key}, released)
    converter.convert(config, released, str(tmp_path / 'converted.pth'))


def test_command_line(converter, tmp_path, capsys):
    config, released, *_ = _case('plain', tmp_path)
    target = str(tmp_path / 'converted.pth')
    done = subprocess.run(
        [sys.executable, str(SCRIPT), config, released, target],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '6 of 6 classes in memory' in done.stdout
    for source, said in ((config, 'config.py is no checkpoint'), ('none.pth', 'no file none.pth')):
        with pytest.raises(SystemExit, match=said) as error:
            converter.main([config, source, target])
        assert str(error.value).startswith('error: ')
    with pytest.raises(SystemExit):
        converter.main(['--help'])
    assert 'ASPPHead' in capsys.readouterr().out
