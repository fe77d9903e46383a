"""tools/init_memory.py: sampling, k-means, and whole runs whose file a head starts from."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmseg.registry import DATASETS, MODELS

from mmseg_cmdl.models.memory import InitialMemory
from mmseg_cmdl.utils import Reservoir
from tests import tiny
from tests.paths import TOOLS, load_script
from tests.reference import mdrl

SCRIPT = TOOLS / 'init_memory.py'
BANKS = {
    'MCIBIHead': dict(type='FeatureBank'),
    'MDRLHead': dict(type='DistributionBank', num_distributions=3),
}


@pytest.fixture(scope='module')
def tool():
    return load_script(SCRIPT)


# ---- sampling ----


def test_every_pixel_of_a_class_is_as_likely():
    """2 of 12 over uneven batches: each pixel is kept in 1/6 of 900 runs, never one twice."""
    vectors = torch.arange(12.0)[:, None]
    seen = Counter()
    for seed in range(900):
        reservoir = Reservoir(3, 2, 1, seed)
        for part in (slice(0, 1), slice(1, 8), slice(8, 12)):
            reservoir.add(vectors[part], torch.ones(len(vectors[part]), dtype=torch.long))
        kept = reservoir.sample(1)[:, 0].tolist()
        assert len(set(kept)) == 2
        seen.update(kept)
        assert reservoir.counts.tolist() == [0, 12, 0]
        assert not len(reservoir.sample(0))
    assert all(110 < seen[float(index)] < 190 for index in range(12)), seen  # 150 +- 11


def test_reservoir_of_many_classes_keeps_all_of_few_pixels():
    reservoir = Reservoir(4, 50, 2, 0)
    vectors, classes = torch.randn(60, 2), torch.arange(60) % 3
    vectors[4] = torch.nan
    for part in (slice(0, 25), slice(25, 60)):
        reservoir.add(vectors[part], classes[part])
    for c in range(3):
        own = vectors[(classes == c) & vectors.isfinite().all(1)]
        assert sorted(reservoir.sample(c).tolist()) == sorted(own.tolist())
    assert reservoir.counts.tolist() == [20, 19, 20, 0]


# ---- k-means ----


def test_centers_are_the_mean_directions_of_groups(tool):
    """Three groups far apart, of other lengths: found from any start."""
    directions = F.normalize(torch.randn(3, 16), dim=1)
    groups = torch.arange(300) % 3
    noisy = F.normalize(directions[groups] + 0.05 * torch.randn(300, 16), dim=1)
    lengths = torch.tensor([1.0, 5.0, 20.0])[groups] * (torch.rand(300) + 0.5)
    expected = torch.stack(
        [mdrl.unit(noisy[groups == g].sum(0)) * lengths[groups == g].mean() for g in range(3)]
    )
    for seed in range(10):
        centers = tool.spherical_kmeans(
            noisy * lengths[:, None], 3, torch.Generator().manual_seed(seed)
        )
        order = (F.normalize(centers) @ directions.t()).argmax(1)
        assert sorted(order.tolist()) == [0, 1, 2]
        torch.testing.assert_close(centers, expected[order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ('vectors', 'num'),
    [
        (torch.ones(5, 4), 1),
        (torch.eye(4)[[0, 1, 1, 0, 0]], 2),
        (torch.zeros(3, 4), 1),
        (torch.cat([torch.zeros(3, 4), torch.eye(4)[:2]]), 2),
        (torch.randn(2, 4), 2),
    ],
    ids=['one direction', 'two', 'zeros', 'some zeros', 'few'],
)
def test_fewer_directions_than_centers(tool, vectors, num):
    centers = tool.spherical_kmeans(vectors, 3, torch.Generator().manual_seed(0))
    assert centers.shape == (num, 4)
    assert centers.isfinite().all()


# ---- whole runs ----

CONFIG = """
_base_ = './tiny.py'
custom_imports = dict(imports=['mmseg_cmdl'], allow_failed_imports=False)
metainfo = dict(classes=('ground', 'box', 'bar', 'unicorn'),
                palette=[[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]])
# nothing random, to be computed again
train_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
train_dataloader = dict(dataset=dict(metainfo=metainfo, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(metainfo=metainfo))
test_dataloader = dict(dataset=dict(metainfo=metainfo))
model = dict(decode_head=dict(
    _delete_=True, type='{kind}', in_channels=64, in_index=0, channels=8, num_classes=4,
    norm_cfg=dict(type='BN', requires_grad=True), align_corners=False, bank={bank}))
"""


def _config(tmp_path, tiny_data, kind):
    """A config of a head with memory on the tiny images; nobody has ever seen a unicorn there."""
    tiny.write_config(tmp_path / 'tiny.py', tiny_data)
    path = tmp_path / 'config.py'
    path.write_text(CONFIG.format(kind=kind, bank=BANKS[kind]))
    return str(path)


def _pixels(config, state):
    """Every train pixel's vector and class at feature size, computed apart from the tool."""
    cfg = Config.fromfile(config)
    init_default_scope('mmseg')
    model = MODELS.build(cfg.model).eval()
    model.load_state_dict(state)
    vectors, classes = [], []
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    for index in range(len(dataset)):
        item = dataset[index]
        data = model.data_preprocessor(
            dict(inputs=[item['inputs']], data_samples=[item['data_samples']]), training=True
        )
        with torch.no_grad():
            pixels = model.decode_head.bottleneck(model.backbone(data['inputs'])[0])
            rows = model.decode_head.embed(pixels).flatten(0, 2)
        labels = data['data_samples'][0].gt_sem_seg.data
        vectors.append(rows)
        classes.append(mdrl.nearest_labels(labels, pixels.shape[2:]).flatten())
    return torch.cat(vectors), torch.cat(classes)


def _checkpoint(config, path):
    init_default_scope('mmseg')
    torch.manual_seed(3)
    model = MODELS.build(Config.fromfile(config).model)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    torch.save(dict(state_dict=model.state_dict()), path)
    return model.state_dict()


@pytest.mark.parametrize('kind', BANKS)
def test_random_pixels_of_the_train_set(tool, kind, tmp_path, tiny_data, capsys):
    config = _config(tmp_path, tiny_data, kind)
    state = _checkpoint(config, tmp_path / 'weights.pth')
    out = tmp_path / 'memory.pth'
    arguments = [config, str(out), '--checkpoint', str(tmp_path / 'weights.pth'), '--device', 'cpu']
    tool.main(arguments)
    said = capsys.readouterr().out
    assert '1 classes never seen: unicorn' in said
    assert 'masks painted in 0 and 255' in said
    memory = InitialMemory.load(out)
    vectors, classes = _pixels(config, state)
    num = 1 if kind == 'MCIBIHead' else 3
    assert memory.centers.shape == (4, num, 8)
    assert memory.filled.tolist() == [[True] * num] * 3 + [[False] * num]
    assert memory.counts.tolist() == [(classes == c).sum().item() for c in range(4)]
    assert memory.classes == ['ground', 'box', 'bar', 'unicorn']
    for c in range(3):
        own = vectors[classes == c]
        for center in memory.centers[c]:
            assert (own - center).abs().amax(1).min() < 1e-5
    tool.main([*arguments, '--overwrite'])
    assert torch.equal(InitialMemory.load(out).centers, memory.centers)
    tool.main([*arguments, '--overwrite', '--seed', '1'])
    assert not torch.equal(InitialMemory.load(out).centers, memory.centers)


def test_cluster_of_all_pixels(tool, tmp_path, tiny_data):
    config = _config(tmp_path, tiny_data, 'MCIBIHead')
    state = _checkpoint(config, tmp_path / 'weights.pth')
    out = tmp_path / 'memory.pth'
    arguments = [config, str(out), '--strategy', 'cluster', '--samples', '100000']
    tool.main([*arguments, '--device', 'cpu', '--checkpoint', str(tmp_path / 'weights.pth')])
    memory = InitialMemory.load(out)
    vectors, classes = _pixels(config, state)
    for c in range(3):
        own = vectors[classes == c]
        own = own[own.norm(dim=1) > 0]
        expected = mdrl.unit(mdrl.unit(own).sum(0)) * own.norm(dim=1).mean()
        torch.testing.assert_close(memory.centers[c, 0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', BANKS)
def test_a_head_trains_from_the_file(tool, kind, tmp_path, tiny_data, capsys, monkeypatch):
    """Without a checkpoint: the layers that made the vectors come along, and a warning."""
    config = _config(tmp_path, tiny_data, kind)
    out = tmp_path / 'memory.pth'
    tool.main([config, str(out), '--strategy', 'cluster', '--max-images', '3', '--device', 'cpu'])
    said = capsys.readouterr()
    assert 'not pretrained' in said.err
    assert 'of 3 images' in said.out
    memory = InitialMemory.load(out)
    assert {key.split('.')[0] for key in memory.embedding} == (
        {'bottleneck'} if kind == 'MCIBIHead' else {'bottleneck', 'projection'}
    )

    cfg = Config.fromfile(config)
    cfg.model.decode_head.bank.init = str(out)
    cfg.work_dir = str(tmp_path / 'work')
    # mmengine formats the config for every checkpoint, seconds each
    monkeypatch.setattr(Config, 'pretty_text', property(repr))
    runner = Runner.from_cfg(cfg)
    seen = {}

    def look(module, args):
        if not seen:
            seen.update({key: value.cpu().clone() for key, value in module.state_dict().items()})

    runner.model.decode_head.bottleneck.register_forward_pre_hook(
        lambda *args: look(runner.model.decode_head, args)
    )
    said = []
    monkeypatch.setattr(
        'mmseg_cmdl.models.memory.memory_bank.print_log', lambda text, *_: said.append(text)
    )
    runner.train()
    assert not said  # that a fresh memory starts
    for key, value in memory.embedding.items():
        assert torch.equal(seen[key], value), key
    if kind == 'MCIBIHead':
        assert torch.equal(seen['bank.features'], memory.centers[:, 0])
        after = runner.model.decode_head.bank
        assert not torch.equal(after.features, memory.centers[:, 0])
        assert torch.equal(after.features[3], torch.zeros(8))
        assert after.filled.tolist() == [True, True, True, False]
        # eq. 7 at the last of four iterations, by way of the runner's message hub
        last = runner.message_hub.get_scalar('train/decode.stat_memory_momentum').current()
        assert last == pytest.approx(0.25**0.9 * (0.9 - 0.009) + 0.009, rel=1e-5)
    else:
        rows = seen['bank.distributions'][:3]
        torch.testing.assert_close(rows, F.normalize(memory.centers[:3], dim=-1))


@pytest.mark.parametrize('fault', ['label', 'gone', 'cut'])
def test_annotations_that_cannot_be_used_are_named(tool, fault, tmp_path, capsys):
    root = tiny.write_dataset(tmp_path / 'data')
    annotation = root / 'annotations' / 'train' / '1.png'
    said = tiny.spoil(annotation, fault)
    with pytest.raises(SystemExit, match=said) as error:
        tool.main([_config(tmp_path, root, 'MCIBIHead'), str(tmp_path / 'memory.pth')])
    assert error.value.code == 2
    assert str(annotation) in str(error.value)


def test_refusals(tool, tmp_path, tiny_data, tiny_config, capsys):
    config = _config(tmp_path, tiny_data, 'MCIBIHead')
    out = str(tmp_path / 'memory.pth')
    with pytest.raises(SystemExit, match='FCNHead, which has no memory'):
        tool.main([str(tiny_config), out])
    (tmp_path / 'memory.pth').write_text('there')
    with pytest.raises(SystemExit):
        tool.main([config, out])
    assert 'pass --overwrite' in capsys.readouterr().err
    torch.save(dict(state_dict={'backbone.stem.0.weight': torch.zeros(1)}), tmp_path / 'bad.pth')
    with pytest.raises(SystemExit, match=r'backbone\.stem\.0\.weight'):
        tool.main([config, out, '--overwrite', '--checkpoint', str(tmp_path / 'bad.pth')])
    assert (tmp_path / 'memory.pth').read_text() == 'there'
