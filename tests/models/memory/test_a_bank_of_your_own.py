"""A memory that the package doesn't know, written here, works with heads, hook and tools.

Two means for each class: of the pixels of even and of odd rows.
"""

import json

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.registry import MODELS

from mmseg_cmdl.analysis import ExaminedModel
from mmseg_cmdl.models import DatasetContextHead
from mmseg_cmdl.models.memory import MemoryBank
from mmseg_cmdl.utils import all_reduce_sum_, labels_at_feature_size
from tests.analysis.conftest import IMAGES, NUM_CLASSES, trained  # noqa: F401
from tests.models.decode_heads import tiny_head
from tests.paths import TOOLS, load_script


@MODELS.register_module()
class TestMeans(MemoryBank):
    """Running mean of two groups of pixels of each class; 0 until it has one."""

    __test__ = False
    memory_name = 'means'

    def __init__(self, num_classes, channels, init='zero'):
        super().__init__(None if init == 'zero' else init)
        self.num_classes, self.channels = num_classes, channels
        self.register_buffer('means', torch.zeros(num_classes, 2, channels))

    def update_(self, vectors, labels, groups):
        if not self.begin_update():
            return None
        with torch.no_grad():
            rows = torch.where(labels < self.num_classes, 2 * labels + groups, 2 * self.num_classes)
            sums = vectors.new_zeros(2 * self.num_classes + 1, self.channels + 1)
            sums.index_add_(0, rows, torch.cat([vectors, torch.ones_like(vectors[:, :1])], 1))
            sums = all_reduce_sum_(sums)[:-1].unflatten(0, (-1, 2))
            counts = sums[..., -1:]
            target = sums[..., :-1] / counts.clamp(min=1)
            self.means.lerp_(torch.where(counts > 0, target, self.means), 0.5)
        return counts.sum()

    def filled_classes(self):
        return self.means.any(2).any(1)

    def _set_initial(self, memory):
        memory.check(self.num_classes, 2, self.channels)
        self.means.copy_(memory.centers)


class MeanLoss(torch.nn.Module):
    """1 - the similarity with the nearest mean of the own class."""

    loss_name = 'loss_mean'

    def forward(self, similarity, labels, ignore_index=255):
        small = labels_at_feature_size(labels, similarity.shape[1:3])
        own = similarity.amax(-1).gather(-1, small.clamp(max=similarity.shape[3] - 1)[..., None])
        return (1 - own[..., 0])[small != ignore_index].mean()


@MODELS.register_module()
class TestMeansHead(DatasetContextHead):
    """Mixes the sum of both means into every pixel."""

    __test__ = False

    def __init__(self, *args, bank=dict(type='TestMeans'), **kwargs):
        super().__init__(*args, **kwargs)
        self.bank = self._build_bank(bank, TestMeans, channels=self.channels)
        self.consistency = self._build_consistency([MeanLoss()])

    def read_memory(self, weights):
        return self.bank.vote(weights).unflatten(1, (2, -1)).sum(1)

    def memory_losses(self, pixels, labels):
        embeddings = self.embed(pixels)
        similarity = self.bank.similarity(embeddings)
        return self.consistency(dict(pixels=pixels, labels=labels), similarity, labels)

    def update_bank(self, pixels, labels):
        small = labels_at_feature_size(labels, pixels.shape[2:])
        groups = torch.arange(small.shape[1])[:, None].expand_as(small[0]) % 2
        moved = self.bank.update_(
            self.embed(pixels).detach().flatten(0, 2),
            small.flatten().long(),
            groups.expand_as(small).flatten(),
        )
        return {} if moved is None else dict(stat_pixels=moved)


def test_what_a_bank_must_say():
    for missing in ('update_', '_set_initial'):
        parts = {name: vars(TestMeans)[name] for name in ('update_', '_set_initial')}
        del parts[missing]
        with pytest.raises(TypeError, match=missing):
            type('Bank', (MemoryBank,), dict(parts, memory_name='means'))()


def test_a_step_moves_it_after_its_losses():
    head = tiny_head.make('TestMeansHead')
    assert not head.bank.filled_classes().any()
    losses, _ = tiny_head.step(head)
    assert losses['loss_mean'] == 1  # of means that are still 0
    labels = tiny_head.label_maps()
    assert losses['stat_pixels'] == (labels_at_feature_size(labels, (5, 6)) != 255).sum()
    assert head.bank.filled_classes().tolist() == [True, True, False, True, True]
    assert tiny_head.step(head, 1)[0]['loss_mean'] != 1
    head.eval()
    similarity = head.bank.similarity(torch.eye(8).double())
    torch.testing.assert_close(similarity, head.bank.means.permute(2, 0, 1))
    classes, which = head.distribution_map(tiny_head.features())
    pixels = head.embed(head.bottleneck(tiny_head.features()[3]))
    own = torch.einsum('bhwc,bhwnc->bhwn', pixels, head.bank.means[classes])
    assert torch.equal(which, own.argmax(-1))


def test_one_vector_of_each_class_has_drifted():
    """Angles of vectors that were there; a class that has come is filled, not moved."""
    bank = TestMeans(3, 2)
    with pytest.raises(RuntimeError, match=r'TestMeans: call watch\(\) before health\(\)'):
        bank.health()
    bank.watch()
    bank.means[:2] = torch.tensor([[2.0, 0], [0, 1]])
    assert bank.health() == dict(bank_drift=0, bank_filled=2)
    bank.means[0] = torch.tensor([1.0, 1])  # 45 degrees from both, two of the four that were there
    assert bank.health()['bank_drift'] == pytest.approx(45 / 2)


@pytest.fixture(scope='module')
def job(trained, tmp_path_factory):  # noqa: F811
    """Folder of a job with hook and a file of start values, its config and checkpoint."""
    folder = tmp_path_factory.mktemp('own_bank')
    cfg = Config.fromfile(trained.mdrl[0])
    head = cfg.model.decode_head
    head.type, head.bank = 'TestMeansHead', dict(type='TestMeans')
    del head['loss_consistency']
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    cfg.train_dataloader.dataset.length = IMAGES
    cfg.train_dataloader.batch_size = 2
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint.update(interval=2)
    cfg.work_dir = str(folder)
    cfg.custom_hooks = [dict(type='BankHealthHook', interval=1)]
    cfg.visualizer.name = cfg.experiment_name = 'own_bank'
    path = folder / 'config.py'
    cfg.dump(path)
    memory = folder / 'memory.pth'
    load_script(TOOLS / 'init_memory.py').main([str(path), str(memory), '--device', 'cpu'])
    cfg.model.decode_head.bank.init = str(memory)
    runner = Runner.from_cfg(cfg)
    runner.model.init_weights()
    start = runner.model.decode_head.bank.means.clone()
    assert start.any(2).sum() > NUM_CLASSES
    runner.train()
    return folder, str(path), str(folder / 'iter_2.pth'), start


def test_bank_health_hook_logs_and_draws_it(job):
    folder = job[0]
    (file,) = folder.glob('*/vis_data/scalars.json')
    records = [json.loads(line) for line in file.read_text().splitlines()]
    records = [record for record in records if 'bank_drift' in record]
    assert [record['step'] for record in records] == [1, 2]
    assert records[1]['bank_drift'] > 0
    assert all(0 < record['bank_filled'] <= NUM_CLASSES for record in records)
    assert list(folder.glob('*/vis_data/vis_image/distribution_map_0_2.png'))


def test_analysis_tools_look_at_it(job, tmp_path, capsys):
    _, config, checkpoint, start = job
    model = ExaminedModel.load(config, checkpoint)
    assert not torch.equal(model.bank().class_vectors(), start)
    tools = TOOLS / 'analysis'
    for name, options in (
        ('distribution_map', []),
        ('feature_space', ['--method', 'pca']),
        ('compactness', []),
    ):
        out = tmp_path / name
        load_script(tools / f'{name}.py').main([config, checkpoint, '--out', str(out), *options])
        assert list(out.glob('*.png')), name
    usage = json.loads(next((tmp_path / 'distribution_map').glob('*.json')).read_text())
    assert usage['num_distributions'] == 2
