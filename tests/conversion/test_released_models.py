"""Every released network, by the names and shapes of its state dict, fits its shipped config.

tests/data/released_models.json lists them, as read from the toolboxes: facts, no weights.
"""

import json
import re

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from mmseg.registry import DATASETS, MODELS

from mmseg_cmdl.conversion import (
    RELEASED,
    ConversionError,
    build_without_memory,
    check_fit,
    convert,
    convert_state,
    differences,
    recognise,
)
from mmseg_cmdl.conversion.converting import fit_config, widths
from tests.paths import ROOT
from tests.reference import golden

LISTED = json.loads((ROOT / 'tests' / 'data' / 'released_models.json').read_text())
NETWORKS = LISTED['models']
MCIBI = [name for name in NETWORKS if name.startswith('mcibi_')]
PLUS_PLUS = [name for name in NETWORKS if name.startswith('mcibiplusplus_')]
PROTO_SEG = 'hrnet_w48_proto_lr1x_hrnet_proto_80k_latest'
CMDL = {
    'cmdl_fcn': 'mdrl_fcn_r50-d8_4xb2-80k_cityscapes-512x1024',
    'cmdl_pspnet': 'mdrl_pspnet_r50-d8_4xb2-80k_cityscapes-512x1024',
    'cmdl_ccnet': 'mdrl_ccnet_r50-d8_4xb2-80k_cityscapes-512x1024',
}


def config_path(name):
    (path,) = (ROOT / 'configs').rglob(f'{name}.py')
    return str(path)


def names_in(pattern):
    """'layer1.[0-2].conv1' to the three names that it stands for."""
    found = re.search(r'\[(\d+)-(\d+)\]', pattern)
    if found is None:
        return [pattern]
    before, after = pattern[: found.start()], pattern[found.end() :]
    numbers = range(int(found[1]), int(found[2]) + 1)
    return [name for number in numbers for name in names_in(f'{before}{number}{after}')]


def listed_shapes(name):
    """Shape by key of a released state dict."""
    shapes = {}
    for part in NETWORKS[name]['parts']:
        for pattern, description in LISTED['parts'][part].items():
            kind, *sizes = description.replace('K', str(NETWORKS[name]['num_classes'])).split()
            shape = [int(size) for size in sizes[0].split('x')] if sizes else []
            for module in names_in(pattern):
                if kind == 'p':
                    shapes[module] = shape
                    continue
                shapes[f'{module}.weight'] = shape
                if kind == 'wb':
                    shapes[f'{module}.bias'] = shape[:1]
                elif kind == 'bn':
                    for leaf in ('bias', 'running_mean', 'running_var'):
                        shapes[f'{module}.{leaf}'] = shape
                    shapes[f'{module}.num_batches_tracked'] = []
    return shapes


def without_memory(name):
    return {key: torch.empty(shape, device='meta') for key, shape in listed_shapes(name).items()}


def random_state(name):
    """Random numbers with which a network neither vanishes nor explodes."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, shape in listed_shapes(name).items():
        if key.endswith('num_batches_tracked'):
            state[key] = torch.tensor(3)
        elif len(shape) == 4:
            inputs = shape[1] * shape[2] * shape[3]
            state[key] = torch.randn(shape, generator=generator) * (2 / inputs) ** 0.5
        elif key.endswith(('running_var', 'weight')):
            state[key] = torch.rand(shape, generator=generator) * 0.5 + 0.75
        else:
            state[key] = torch.randn(shape, generator=generator) * 0.2
    return state


def state_of_zeros(name):
    """As small in a file as its names and shapes."""
    return {key: torch.zeros(()).expand(shape) for key, shape in listed_shapes(name).items()}


def test_table_and_list_name_the_same_models():
    assert sorted(RELEASED) == sorted([*MCIBI, *PLUS_PLUS, PROTO_SEG])
    assert (len(MCIBI), len(PLUS_PLUS)) == (18, 37)


CONTEXTS = {'aspp': 'ASPPHead', 'ppm': 'PSPHead'}


@pytest.mark.parametrize('name', [*MCIBI, *PLUS_PLUS])
def test_released_network_fits_its_config(name):
    """Names and shapes, and what has no tensor, of the model that the shipped config builds."""
    released, listed, state = RELEASED[name], NETWORKS[name], without_memory(name)
    cfg = Config.fromfile(config_path(released.config))
    loader = cfg.train_dataloader.dataset
    if released.dataset is not None:
        classes = DATASETS.get(released.dataset).METAINFO['classes']
        assert len(classes) == listed['num_classes']
    if loader.get('datasets', [loader])[0].type == released.dataset:
        model = build_without_memory(cfg)
        assert widths(state, model) == {}
    else:  # no config of its own: what --out-config makes of the same network's
        assert re.search('swinlarge|_vspw$', name)
        model, _ = fit_config(cfg, state, released, change=True)
    converted = convert_state(state, released.head)
    check_fit(converted, model)
    model.load_state_dict(converted, strict=True, assign=True)
    assert differences(model, released) == {}

    head = model.decode_head
    assert head.num_classes == listed['num_classes']
    activations = [module for module in head.modules() if 'LU' in type(module).__name__]
    slopes = [getattr(module, 'negative_slope', '') for module in activations]
    kinds = {f'{type(m).__name__} {slope}'.strip() for m, slope in zip(activations, slopes)}
    assert kinds == {listed['activation']}  # down to the modules
    context = None if head.context is None else type(head.context.head).__name__
    assert context == CONTEXTS.get(listed.get('context', 'aspp'))  # those of MCIBI are DeepLabV3
    if 'dilations' in listed:
        assert list(head.context.head.dilations) == listed['dilations']
    if context is not None and name in PLUS_PLUS:
        assert head.weights_from == listed['weights_from']
    if 'stride' in listed:
        assert model.neck.stride == listed['stride']
    if 'activation inside the stem' in listed:
        stem = type(model.backbone).__name__ == 'HRNet'
        assert stem == listed['activation inside the stem']


def test_file_with_random_numbers_becomes_a_model(tmp_path):
    """The whole way once: the released file layout, converted, loaded strictly, and predicts."""
    name = 'mcibi_deeplabv3_r50_lip'
    source, target = tmp_path / f'{name}.pth', tmp_path / 'converted.pth'
    state = random_state(name)
    torch.save(dict(model=state, epoch=150), source)
    done = convert(config_path(RELEASED[name].config), str(source), str(target))
    assert (done.model, done.changed, done.notes) == (name, {}, [])
    cfg = Config.fromfile(config_path(RELEASED[name].config))
    cfg.model.pretrained = None
    init_default_scope('mmseg')
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    checkpoint = load_checkpoint(model, str(target), strict=True)
    classes = checkpoint['meta']['dataset_meta']['classes']
    assert len(classes) == 20
    assert classes[14:16] == ['Left-arm', 'Right-arm']
    # ASPP joins its pooled branch first here
    ours = model.decode_head.context.head.bottleneck.conv.weight
    theirs = state['context_within_image_module.bottleneck.0.weight']
    assert torch.equal(ours[:, :512], theirs[:, -512:])
    assert torch.equal(ours[:, 512:], theirs[:, :-512])
    with torch.no_grad():
        logits = model.decode_head(model.extract_feat(torch.randn(1, 3, 33, 33)))
    assert logits.isfinite().all()
    assert logits.std() > 0.01


def test_a_config_for_another_of_the_released_models_is_refused(tmp_path):
    """A config of the right shapes, with the classes of another data set."""
    name = 'mcibi_deeplabv3_r50_lip'
    source = tmp_path / 'downloaded.pth'
    torch.save(dict(model=random_state(name)), source)
    target = str(tmp_path / 'converted.pth')
    config = config_path(RELEASED[name].config)
    options = {'train_dataloader.dataset.type': 'CIHPDataset'}
    with pytest.raises(ConversionError, match='predicts the classes of LIPDataset'):
        convert(config, str(source), target, model=name, cfg_options=options)
    assert not (tmp_path / 'converted.pth').exists()
    assert recognise('some/folder/mcibi_deeplabv3_r50_lip.pth') == name
    assert recognise(str(source)) is None


def test_released_network_of_proto_seg_fits_its_config(tmp_path):
    """By the file's name it is refused as the shipped config is, and --out-config makes it fit."""
    source, target = tmp_path / f'{PROTO_SEG}.pth', tmp_path / 'converted.pth'
    state = state_of_zeros(PROTO_SEG)
    for key in ('prototypes', 'cls_head.0.bias', 'cls_head.1.0.running_mean'):
        state[key] = torch.randn(state[key].shape, generator=torch.Generator().manual_seed(0))
    torch.save(dict(state_dict={f'module.{key}': value for key, value in state.items()}), source)
    config = config_path(RELEASED[PROTO_SEG].config)
    with pytest.raises(ConversionError, match='bgr_to_rgb=False'):
        convert(config, str(source), str(target), head='ProtoSegHead')
    assert not target.exists()
    fitted = tmp_path / 'fitted.py'
    done = convert(config, str(source), str(target), head='ProtoSegHead', out_config=str(fitted))
    assert done.model == PROTO_SEG
    assert set(done.changed) == {
        'data_preprocessor.bgr_to_rgb',
        'backbone.type',
        'decode_head.norm_axis',
    }
    model = build_without_memory(Config.fromfile(fitted))
    converted = torch.load(target, weights_only=True)['state_dict']
    model.load_state_dict(converted, strict=True, assign=True)
    assert differences(model, RELEASED[PROTO_SEG]) == {}
    rows = converted['decode_head.bank.distributions']
    assert rows.shape == (19, 10, 720)
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(19, 10))
    theirs = state['prototypes']
    torch.testing.assert_close(rows * theirs.norm(dim=-1, keepdim=True), theirs)
    # the conv before the norm has a bias there
    mean = state['cls_head.1.0.running_mean'] - state['cls_head.0.bias']
    assert torch.equal(converted['decode_head.bottleneck.bn.running_mean'], mean)
    upsampled = [m for m in model.backbone.modules() if type(m).__name__ == 'Upsample']
    assert upsampled
    assert all(m.align_corners for m in upsampled)


def test_memory_of_mcibi_plus_plus_gets_the_rows_that_the_release_draws():
    """The state of a small head under the released names; its class vectors as recorded."""
    data = golden.load('mcibipp_forward_plain_soft', torch.float32)
    memory = data['sd.memory_module.memory']
    channels = data['eps'].shape[1]
    converted = convert_state(
        {'memory_module.memory': memory, 'bottleneck.0.weight': torch.zeros(channels, 3, 3, 3)},
        'MCIBIPlusPlusHead',
    )
    assert torch.equal(converted['decode_head.bank.noise'], data['eps'])
    mean, deviation = converted['decode_head.bank.statistics'].unbind(dim=1)
    vectors = mean[:, None] + deviation[:, None] * converted['decode_head.bank.noise']
    torch.testing.assert_close(vectors, data['class_vectors'], rtol=0, atol=1e-6)
    with pytest.raises(ConversionError, match=r'\[K, 2\]'):
        convert_state({'memory_module.memory': torch.zeros(5, 1, 8)}, 'MCIBIPlusPlusHead')


def test_a_model_for_another_head_is_refused(tmp_path):
    source = tmp_path / 'mcibiplusplus_resnet50os8_lip.pth'
    torch.save(dict(model={}), source)
    config = config_path(RELEASED['mcibi_deeplabv3_r50_lip'].config)
    with pytest.raises(ConversionError, match='is a model for MCIBIPlusPlusHead'):
        convert(config, str(source), str(tmp_path / 'converted.pth'))


def test_a_model_of_a_data_set_that_is_not_here_gets_no_names_of_classes(tmp_path):
    name = 'mcibiplusplus_upernet_resnet50os8_vspw'
    source, target = tmp_path / f'{name}.pth', tmp_path / 'converted.pth'
    torch.save(dict(model=state_of_zeros(name)), source)
    config = config_path(RELEASED[name].config)
    with pytest.raises(ConversionError, match='num_classes=124'):
        convert(config, str(source), str(target))
    done = convert(config, str(source), str(target), out_config=str(tmp_path / 'fitted.py'))
    assert "aren't saved" in done.notes[0]
    assert set(torch.load(target, weights_only=True)['meta']) == {'converted_from'}
    assert Config.fromfile(tmp_path / 'fitted.py').model.decode_head.num_classes == 124


@pytest.mark.parametrize('name', CMDL)
def test_network_of_cmdl_fits_its_config(name):
    cfg = Config.fromfile(config_path(CMDL[name]))
    if name == 'cmdl_ccnet':
        cfg.merge_from_dict({'model.decode_head.context.concat_input': False})
    model = build_without_memory(cfg)
    state = convert_state(without_memory(name), 'MDRLHead')
    check_fit(state, model)
    model.load_state_dict(state, strict=True, assign=True)
    assert model.decode_head.bank.distributions.shape == (19, 9, 512)


def test_bias_before_a_norm_is_absorbed_by_it():
    """CMDL's projection has a bias there, ours has none: the same embedding, and after a step."""
    torch.manual_seed(0)
    theirs = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1), torch.nn.BatchNorm2d(4))
    theirs[1].running_mean.normal_()
    state = {f'proj_head.proj.{key}': value for key, value in theirs.state_dict().items()}
    state['memory_module.memory'] = torch.randn(3, 2, 4)
    converted = convert_state(state, 'MDRLHead')
    prefix = 'decode_head.projection.convs.0'
    assert f'{prefix}.conv.bias' not in converted
    ours = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1, bias=False), torch.nn.BatchNorm2d(4))
    ours[0].weight.data = converted[f'{prefix}.conv.weight']
    ours[1].load_state_dict(
        {
            key.rpartition('.')[2]: value
            for key, value in converted.items()
            if key.startswith(f'{prefix}.bn')
        }
    )
    x = torch.randn(2, 4, 5, 5)
    for model in (ours, theirs):
        model.eval()
    torch.testing.assert_close(ours(x), theirs(x))
    for model in (ours, theirs):
        model.train()
    torch.testing.assert_close(ours(x), theirs(x))
