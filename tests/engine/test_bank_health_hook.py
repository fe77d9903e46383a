"""BankHealthHook in a Runner: its scalars against loops over the head's output; its pictures."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from mmseg_cmdl.engine import BankHealthHook
from mmseg_cmdl.engine.bank_health_hook import find_bank_head
from tests.analysis.conftest import NUM_CLASSES, NUM_DISTRIBUTIONS, trained  # noqa: F401
from tests.reference import mdrl

ITERATIONS, INTERVAL = 4, 2


def train(pair, folder, *hooks, backends=None):
    """Runner after four iterations and one validation; what moved the bank, and the bank."""
    cfg = Config.fromfile(pair[0])
    cfg.work_dir = str(folder)
    cfg.train_cfg.update(max_iters=ITERATIONS, val_interval=ITERATIONS)
    cfg.train_dataloader.batch_size = 2
    cfg.train_dataloader.dataset.length = 8
    cfg.model.decode_head.update(
        bank=dict(num_distributions=NUM_DISTRIBUTIONS, momentum=0.5)
    ) if 'bank' in cfg.model.decode_head else None
    cfg.default_hooks.logger.interval = INTERVAL
    cfg.default_hooks.checkpoint.update(interval=ITERATIONS)
    cfg.env_cfg.cudnn_benchmark = False
    cfg.visualizer.name = cfg.experiment_name = f'health_{folder.name}'
    if backends:
        cfg.visualizer.vis_backends = backends
    cfg.randomness = dict(seed=3)
    cfg.custom_hooks = list(hooks)
    runner = Runner.from_cfg(cfg)
    seen = []
    head = find_bank_head(runner.model)
    if head is not None:
        norms = [loss.norm for loss in head.consistency.losses if getattr(loss, 'norm', None)]

        def note(module, inputs, _):
            if module.training:
                weights = [p.detach().clone() for norm in norms for p in norm.parameters()]
                batch = {**inputs[0], 'norm': weights}
                seen.append((batch, head.bank.distributions.clone()))

        head.consistency.register_forward_hook(note)
    runner.train()
    return runner, seen


@pytest.fixture(scope='module')
def job(trained, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp('health')
    hook = dict(type='BankHealthHook', interval=INTERVAL, images=(0, 3))
    return *train(trained.mdrl, folder, hook), folder


def scalars(folder):
    (file,) = folder.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_scalars_are_those_of_loops(job):
    _, seen, folder = job
    records = [r for r in scalars(folder) if 'bank_drift' in r]
    assert [r['step'] for r in records] == [2, 4]
    filled = set()
    for i, record in enumerate(records):
        counts = np.zeros((NUM_CLASSES, NUM_DISTRIBUTIONS))
        right = total = 0
        for batch, _ in seen[2 * i : 2 * i + 2]:
            similarity = batch['similarity']
            labels = mdrl.nearest_labels(batch['labels'], similarity.shape[1:3])
            for label, scores in zip(labels.flatten().tolist(), similarity.flatten(0, 2)):
                if label < NUM_CLASSES:
                    counts[label, scores[label].argmax()] += 1
                    # right as for the bank: after the LayerNorm of the released local loss
                    nearest = F.layer_norm(scores.amax(1), (NUM_CLASSES,), *batch['norm'])
                    right += int(nearest.argmax() == label)
                    total += 1
                    filled.add(label)
        present = counts[counts.sum(1) > 0]
        spread = [
            -sum(p * math.log(p) for p in row / row.sum() if p) / math.log(NUM_DISTRIBUTIONS)
            for row in present
        ]
        assert record['bank_entropy'] == pytest.approx(np.mean(spread), rel=1e-5)
        assert record['bank_used'] == pytest.approx(100 * (present > 0).mean())
        assert record['bank_accuracy'] == pytest.approx(100 * right / total)
        assert record['bank_left_out'] == 0
        assert record['bank_filled'] == len(filled)
    before, after = seen[1][1], seen[3][1]  # the banks after iterations 2 and 4
    drift = [
        math.degrees(math.acos(min(1, float(a @ b / a.norm() / b.norm()))))
        for a, b in zip(before.double().flatten(0, 1), after.double().flatten(0, 1))
    ]
    assert records[1]['bank_drift'] == pytest.approx(np.mean(drift), rel=1e-4)
    assert records[1]['bank_drift'] > 0.1
    assert not any('loss' in key for key in records[1] if key.startswith('bank'))


def test_maps_are_drawn_at_validation(job):
    runner, _, folder = job
    pictures = sorted(p.name for p in folder.glob('*/vis_data/vis_image/*'))
    assert pictures == ['distribution_map_0_4.png', 'distribution_map_3_4.png']
    file = next(folder.glob('*/vis_data/vis_image/distribution_map_3_4.png'))
    picture = np.asarray(Image.open(file).convert('RGB'))
    assert picture.shape[1] == 900
    from mmseg_cmdl.visualization import color_distributions

    head = runner.model.decode_head
    runner.model.eval()
    from mmseg_cmdl.analysis import ExaminedModel

    dataset = runner.val_dataloader.dataset
    classes, distributions = head.distribution_map(
        ExaminedModel(runner.model, dataset, 'm').feature_maps(3)
    )
    shades = color_distributions(
        classes[0].numpy(), distributions[0].numpy(), NUM_DISTRIBUTIONS, dataset.metainfo['palette']
    )
    quarter = picture[:, 680:].reshape(-1, 3)
    drawn = {tuple(c) for c in np.unique(quarter, axis=0).tolist()}
    assert {tuple(c) for c in np.unique(shades.reshape(-1, 3), axis=0).tolist()} <= drawn


def test_tensorboard_gets_scalars_and_pictures(trained, tmp_path):  # noqa: F811
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    backends = [dict(type='TensorboardVisBackend')]
    train(trained.mdrl, tmp_path, dict(type='BankHealthHook', interval=2), backends=backends)
    events = EventAccumulator(str(next(tmp_path.glob('*/vis_data'))), dict(images=0, scalars=0))
    events.Reload()
    assert [event.step for event in events.Scalars('bank_entropy')] == [2, 4]
    assert 0 < events.Scalars('bank_entropy')[-1].value <= 1
    (picture,) = events.Images('distribution_map_0')
    assert (picture.step, picture.width) == (ITERATIONS, 900)


def test_training_is_the_same_without_it(job, trained, tmp_path):  # noqa: F811
    with_hook = job[0].model.state_dict()
    plain = train(trained.mdrl, tmp_path)[0].model.state_dict()
    assert with_hook.keys() == plain.keys()
    for name, value in plain.items():
        assert torch.equal(value, with_hook[name]), name


def test_a_model_without_a_bank_is_left_alone(trained, tmp_path):  # noqa: F811
    runner, _ = train(trained.fcn, tmp_path, dict(type='BankHealthHook', interval=1))
    assert 'no decode head with a memory bank' in next(tmp_path.glob('*/*.log')).read_text()
    assert not list(tmp_path.glob('*/vis_data/vis_image/*'))
    assert not [key for key in runner.message_hub.log_scalars if 'bank' in key]


def test_wrong_interval():
    with pytest.raises(ValueError, match='interval must be at least 1, got 0'):
        BankHealthHook(interval=0)
