"""Every head exports with dynamic batch and size, and the file is the model."""

import json

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import nn

from mmseg_cmdl import deployment
from mmseg_cmdl.deployment.exportable_layers import (
    AdaptivePoolingByMatrices,
    CrissCrossByMatrices,
    make_exportable_,
    pooling_matrix,
)
from tests import stack
from tests.guarantees import cases
from tests.paths import TOOLS, load_script

EXPORTED = [
    *(name for name in cases.CASES if name.endswith(('psp', 'aspp', 'cc'))),
    'mdrl',
    'mdrl_pixel_gumbel',
    'mdrl_segformer',
    'mcibipp',
    'protoseg',
    'mcibi',
    'car',
    'car_released',
    'car_mdrl',
    'dgcw',
]

# What the cases leave out: other heads, layers and fusions, contexts of several levels.
OTHERS = {
    'caa': dict(type='CAAHead', attention_channels=6, attention=dict(query_channels=4)),
    'cp': cases.CP,
    'global_pooling': dict(cases.DGCW, layer=dict(type='GlobalPoolingContext'), downsample=1),
    'squeeze': dict(cases.DGCW, layer=dict(type='SqueezeExcitation'), downsample=1),
    'nonlocal': dict(cases.DGCW, layer=dict(type='NonLocal2d', reduction=1)),
    'softmax': dict(cases.DGCW, layer=dict(type='ChannelWeighting', norm='softmax')),
    'weighted_add': dict(cases.MDRL, fusion='weighted_add'),
    'da': dict(cases.MDRL, context=dict(type='DAHead', pam_channels=4)),
    'ocr': dict(cases.MDRL, context=dict(type='OCRHead', ocr_channels=4)),
    'uper': dict(
        cases.MCIBI, context=dict(type='UPerHead', in_channels=list(cases.CHANNELS),
                                  in_index=[0, 1, 2, 3], pool_scales=(1, 2)),
    ),
}  # fmt: skip


@pytest.fixture(scope='module')
def tool():
    return load_script(TOOLS / 'deployment' / 'export.py')


@pytest.fixture
def onnx():
    if stack.OLD_TORCH:
        pytest.skip('exporting needs PyTorch 2.6')
    for name in ('onnxscript', 'onnxruntime'):
        pytest.importorskip(name, reason=f'{name} is not installed (requirements/dev.txt has it)')
    return pytest.importorskip('onnx', reason='onnx is not installed')


def trained(name, **options):
    """A model whose bank, norms and weights are no longer those of the start."""
    model = cases.build(name, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for seed in range(2):
        optimizer.zero_grad()
        cases.step(model, seed)
        optimizer.step()
    return model


def job(folder, name, **options):
    """(config file, checkpoint file) of a trained model."""
    model = trained(name, **options)
    config = dict(
        custom_imports=dict(imports=['tests.guarantees.cases'], allow_failed_imports=False),
        default_scope='mmseg', model=cases.model_config(name, **options),
    )  # fmt: skip
    Config(config).dump(str(folder / 'config.py'))
    meta = dict(dataset_meta=dict(classes=tuple('abcde'), palette=[[i] * 3 for i in range(5)]))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), folder / 'model.pth')
    return str(folder / 'config.py'), str(folder / 'model.pth')


def session_of(path):
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])


def loaded(config, checkpoint):
    """The model of a job, for inference."""
    model = cases.from_config(Config.fromfile(config).model)
    model.load_state_dict(torch.load(checkpoint)['state_dict'])
    return model.eval()


@pytest.mark.parametrize('name', cases.shared(cases.METHODS, EXPORTED))
def test_both_formats_are_the_model(name, tool, tmp_path, onnx, capsys):
    """Three sizes and two batch sizes to 1e-4 in onnxruntime; nodes of the allow-list only."""
    config, checkpoint = job(tmp_path, name)
    paths = [str(tmp_path / 'out' / f'model.{suffix}') for suffix in ('onnx', 'pt2')]
    tool.main([config, checkpoint, *paths])
    printed = capsys.readouterr().out
    assert printed.count('same as PyTorch on 6 shapes') == 2
    counts = deployment.node_types(paths[0])
    assert set(counts) <= deployment.ALLOWED_NODES
    assert not any(word in node for node in counts
                   for word in ('If', 'Loop', 'NonZero', 'Scatter', 'Random'))  # fmt: skip
    # once more from outside the tool, against the checkpoint, on a shape that it doesn't check
    session = session_of(paths[0])
    assert session.get_inputs()[0].shape == ['batch', 3, 'height', 'width']
    assert session.get_outputs()[0].shape == ['batch', cases.NUM_CLASSES, 'height', 'width']
    images, _ = cases.batch(7, 4, image_size=(51, 76))
    with torch.no_grad():
        expected = loaded(config, checkpoint).encode_decode(images, [dict(img_shape=(51, 76))])
    (got,) = session.run(None, {'images': images.numpy()})
    assert got.shape == (4, cases.NUM_CLASSES, 51, 76)
    torch.testing.assert_close(torch.from_numpy(got), expected, rtol=0, atol=1e-4)
    assert expected.std() > 1e-3


@pytest.mark.parametrize('name', cases.shared((), OTHERS))
def test_other_heads_and_contexts(name, tool, tmp_path, onnx, capsys):
    config, checkpoint = job(tmp_path, None, head=OTHERS[name])
    tool.main([config, checkpoint, str(tmp_path / 'model.onnx')])
    assert capsys.readouterr().out.count('same as PyTorch on 6 shapes') == 1


SEGFORMER = dict(
    cases.MDRL, context=dict(type='SegformerHead'), in_channels=[4, 8, 16, 32],
    in_index=[0, 1, 2, 3],
)  # fmt: skip
MIT = dict(
    type='MixVisionTransformer', embed_dims=4, num_layers=[1] * 4, num_heads=[1, 2, 4, 8],
    drop_path_rate=0.0,
)  # fmt: skip


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize('strides', [{}, dict(key_stride=1, loss_stride=1)], ids=['default', '1'])
def test_segformer_with_its_own_backbone(strides, tool, tmp_path, onnx):
    """With MDRL, at both of its strides: in onnxruntime at sizes that 32 doesn't divide."""
    options = dict(head={**SEGFORMER, **strides}, auxiliary=False, backbone=MIT)
    config, checkpoint = job(tmp_path, None, **options)
    path = str(tmp_path / 'model.onnx')
    with pytest.raises(SystemExit, match=r'set --smallest-side 61$'):
        tool.main([config, checkpoint, path])
    tool.main([config, checkpoint, path, '--smallest-side', '61'])
    session, model = session_of(path), loaded(config, checkpoint)
    assert model.decode_head.pixels == 'context'
    assert model.decode_head.relation.key_stride == strides.get('key_stride', 8)
    for batch, *size in ((1, 64, 64), (3, 65, 131), (2, 97, 61)):
        images = torch.randn(batch, 3, *size)
        with torch.no_grad():
            expected = model.encode_decode(images, [dict(img_shape=tuple(size))])
        (got,) = session.run(None, {'images': images.numpy()})
        assert expected.std() > 0.1
        torch.testing.assert_close(torch.from_numpy(got), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize('name', cases.CASES)
def test_folded_model_predicts_the_same(name):
    """In double precision, where folding is exact; nothing that only training needs is left."""
    model = trained(name, dtype=torch.float64)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = deployment.InferenceModel(model)
    images, _ = cases.batch(5, dtype=torch.float64)
    model.eval()
    expected = model.encode_decode(images, [dict(img_shape=cases.SIZE)])
    torch.testing.assert_close(folded(images), expected.detach(), rtol=0, atol=1e-10)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key  # the model itself is left alone
    for word in ('bank', 'projection', 'consistency', 'loss', 'auxiliary', 'car', 'fuse_memory'):
        left = [key for key, _ in folded.named_modules() if word in key.split('.')]
        assert not left, left
        assert not any(word in key.split('.') for key in folded.state_dict())


@pytest.mark.parametrize('name', [n for n in cases.WITH_MEMORY if 'protoseg' not in n])
def test_voting_is_one_matrix(name):
    """The memory is a weight [C, K] of a 1x1 conv; MDRL's is kernel times bank."""
    model = trained(name, dtype=torch.float64).eval()
    head = model.decode_head
    weights = torch.rand(2, cases.NUM_CLASSES, 6, 7, dtype=torch.float64)
    expected = head.read_memory(weights).detach()
    if 'mdrl' in name:
        matrix = torch.einsum(
            'knz,cnz->ck', head.bank.distributions,
            head.fuse_memory.conv.weight.flatten(1).unflatten(1, head.bank.distributions.shape[1:]),
        ).detach()  # fmt: skip
    else:
        matrix = head.bank.class_vectors()[:, 0].t()
    head.fold_()
    torch.testing.assert_close(head.folded_memory(weights).detach(), expected, rtol=0, atol=1e-12)
    convs = [m for m in head.folded_memory.modules() if isinstance(m, nn.Conv2d)]
    assert [conv.weight.shape for conv in convs] == [(8, cases.NUM_CLASSES, 1, 1)]
    torch.testing.assert_close(convs[0].weight.flatten(1).detach(), matrix, rtol=0, atol=1e-12)
    assert head.fold_() is head  # a second time does nothing
    with pytest.raises(RuntimeError, match='folded for inference'):
        head.train().loss([], [], None)


@pytest.mark.parametrize('output', ['probabilities', 'labels'])
def test_output_and_normalization(output, tool, tmp_path, onnx):
    config, checkpoint = job(tmp_path, 'mdrl')
    path = str(tmp_path / 'model.onnx')
    tool.main([config, checkpoint, path, '--output', output, '--normalize'])
    session = session_of(path)
    properties = session.get_modelmeta().custom_metadata_map
    assert json.loads(properties['classes']) == list('abcde')
    assert json.loads(properties['mean']) == [110.0] * 3
    assert json.loads(properties['output']) == output
    assert json.loads(properties['channel_order']) == 'RGB'
    images = torch.rand(1, 3, 40, 48) * 255
    with torch.no_grad():
        model = loaded(config, checkpoint)
        logits = model.encode_decode((images - 110) / 60, [dict(img_shape=(40, 48))])
    got = torch.from_numpy(session.run(None, {'images': images.numpy()})[0])
    if output == 'labels':
        assert got.dtype == torch.int64
        assert (got == logits.argmax(1)).double().mean() > 0.999
    else:
        torch.testing.assert_close(got, logits.softmax(1), rtol=0, atol=1e-5)


def test_aligned_corners_and_group_norm(tool, tmp_path, onnx):
    """MMSegmentation's resize looks at sizes where corners are aligned, only to warn."""
    config, checkpoint = job(tmp_path, 'mdrl_psp', norm='GN', head_options=dict(align_corners=True))
    tool.main([config, checkpoint, str(tmp_path / 'model.onnx')])


@pytest.mark.parametrize('size', [1, 2, 5, 6, 7, 12, 97])
@pytest.mark.parametrize('bins', [1, 2, 3, 6])
def test_pooling_matrix_is_adaptive_pooling(size, bins):
    line = torch.randn(3, 4, size, dtype=torch.float64)
    got = line @ pooling_matrix(size, bins, line).t()
    torch.testing.assert_close(got, F.adaptive_avg_pool1d(line, bins), rtol=0, atol=1e-12)


def test_layers_that_stand_for_others():
    from mmcv.ops import CrissCrossAttention

    theirs = nn.Sequential(
        CrissCrossAttention(16), nn.Sequential(nn.AdaptiveAvgPool2d((3, 2))),
        nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((None, 1)),
    ).double()  # fmt: skip
    theirs[0].gamma.scale.data.fill_(0.7)
    maps = torch.randn(2, 16, 7, 5, dtype=torch.float64)
    crossed, pooled, expected = theirs[0](maps), theirs[:2](maps), theirs(maps)
    make_exportable_(theirs)
    assert isinstance(theirs[0], CrissCrossByMatrices)
    assert isinstance(theirs[1][0], AdaptivePoolingByMatrices)
    assert isinstance(theirs[2], nn.AdaptiveAvgPool2d)
    assert isinstance(theirs[3], nn.AdaptiveAvgPool2d)
    for got, want in ((theirs[0](maps), crossed), (theirs[:2](maps), pooled),
                      (theirs(maps), expected)):  # fmt: skip
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_a_difference_is_an_error():
    like = torch.zeros(())
    with pytest.raises(deployment.ExportError, match=r'1x3x64x64 the export .* by 0\.01, more'):
        deployment.compare(lambda x: x, lambda x: x + 0.01 * x.abs().max(), like)
    with pytest.raises(deployment.ExportError, match=r'gives \(1, 1, 64, 64\), the model \(1, 3'):
        deployment.compare(lambda x: x, lambda x: x[:, :1], like)
    with pytest.raises(deployment.ExportError, match='not finite'):
        deployment.compare(lambda x: x, lambda x: x / 0, like)
    with pytest.raises(deployment.ExportError, match='differs'):
        deployment.compare(lambda x: x.argmax(1), lambda x: x.argmin(1), like)
    assert deployment.compare(lambda x: x, lambda x: x + 1e-6, like) < 1e-5


def test_foreign_nodes_are_named(tmp_path, onnx):
    from onnx import TensorProto, helper

    x = helper.make_tensor_value_info('x', TensorProto.FLOAT, [2])
    y = helper.make_tensor_value_info('y', TensorProto.INT64, None)
    graph = helper.make_graph([helper.make_node('NonZero', ['x'], ['y'])], 'g', [x], [y])
    path = str(tmp_path / 'm.onnx')
    onnx.save(helper.make_model(graph), path)
    with pytest.raises(deployment.ExportError, match=r'NonZero.*--allow NonZero'):
        deployment.check_nodes(path)
    assert deployment.check_nodes(path, ['NonZero']) == {'NonZero': 1}


@stack.needs_export
def test_a_head_that_looks_at_values_is_refused():
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 1)

        def forward(self, x):
            return self.conv(x) if x.sum() > 0 else x

    with pytest.raises(deployment.ExportError, match='dynamic batch and size'):
        deployment.export_program(Looks())


@stack.needs_export
def test_the_smallest_side_is_named():
    """Where torch.export can't record one graph for small and for large images."""

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 1)

        def forward(self, x):
            x = self.conv(x)
            return x * 2 if x.shape[2] >= 41 and x.shape[3] >= 53 else x

    with pytest.raises(deployment.ExportError) as error:
        deployment.export_program(Branches())
    assert str(error.value) == (
        'this model can not be recorded for sides of 32 pixels, only for 53 and more: set '
        '--smallest-side 53'
    )
    deployment.export_program(Branches(), 53)


def test_an_old_pytorch_is_named(monkeypatch):
    monkeypatch.setattr(torch, '__version__', '2.5.1+cu124')
    with pytest.raises(deployment.ExportError, match=r'needs PyTorch 2\.6 or newer.* 2\.5\.1'):
        deployment.export_program(nn.Conv2d(3, 5, 1))


def test_another_kind_of_file_is_refused(tool, capsys):
    with pytest.raises(SystemExit):
        tool.main(['c.py', 'w.pth', 'model.trt'])
    assert "must end in .onnx or .pt2 (torch.export), got 'model.trt'" in capsys.readouterr().err


@stack.needs_export
@pytest.mark.parametrize(('opset', 'said'), [(13, 'can not be written with opset 13'), (17, None)])
def test_operator_sets(opset, said, tool, tmp_path, onnx):
    """The file has the one that was asked for, or there is none and a sentence."""
    config, checkpoint = job(tmp_path, 'mdrl')
    out = tmp_path / 'model.onnx'
    arguments = [config, checkpoint, str(out), '--opset', str(opset)]
    if said:
        with pytest.raises(SystemExit, match=said):
            tool.main(arguments)
        assert not out.exists()
        return
    tool.main(arguments)
    model = onnx.load(out)
    assert [(each.domain, each.version) for each in model.opset_import] == [('', opset)]
    sizes = model.graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_param for size in sizes] == ['batch', '', 'height', 'width']


@stack.needs_export
def test_a_file_that_fails_the_check_is_not_left(tool, tmp_path, monkeypatch):
    config, checkpoint = job(tmp_path, 'mdrl')

    def differs(*args, **kwargs):
        raise deployment.ExportError('differs')

    monkeypatch.setattr(tool, 'compare', differs)
    with pytest.raises(SystemExit, match='differs'):
        tool.main([config, checkpoint, str(tmp_path / 'model.pt2')])
    assert not (tmp_path / 'model.pt2').exists()
