"""CAR makes classes compact and their centres dissimilar, against the same training without it."""

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from mmseg_cmdl.analysis import ExaminedModel, measure_statistics
from mmseg_cmdl.datasets import SyntheticScenesDataset
from mmseg_cmdl.shipped_configs import configs_folder
from tests import tiny
from tests.analysis.conftest import run_tool
from tests.tools.test_train_test import own_folder, run, train  # noqa: F401

SIZE = 64
CAMVID = {
    'plain': 'baselines/fcn_r18s-d8_1xb8-200it_camvid-180x240.py',
    'CAR': 'car/car_fcn_r18s-d8_1xb8-200it_camvid-180x240.py',
}


def scenes(split, length):
    init_default_scope('mmseg')
    pipeline = [
        dict(type=step) for step in ('LoadImageFromFile', 'LoadAnnotations', 'PackSegInputs')
    ]
    return SyntheticScenesDataset(split=split, length=length, size=(SIZE, SIZE), pipeline=pipeline)


def small_model(kind, num_classes):
    torch.manual_seed(0)
    cfg = tiny.config(size=SIZE).model
    cfg.type = kind
    cfg.backbone.update(base_channels=16, num_stages=2, out_indices=(1,), strides=(1, 2),
                        dilations=(1, 1))  # fmt: skip
    cfg.decode_head.update(in_channels=32, num_classes=num_classes, dropout_ratio=0.0)
    model = MODELS.build(cfg)
    model.init_weights()
    return model


def trained_on(model, items, iterations, batch=4):
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    model.train()
    for step in range(iterations):
        chosen = [items[(step * batch + i) % len(items)] for i in range(batch)]
        prepared = model.data_preprocessor(pseudo_collate(chosen), True)
        total, _ = model.parse_losses(model.loss(**prepared))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return model


def test_on_scenes_that_neither_has_seen():
    data, unseen = scenes('train', 32), scenes('val', 8)
    data = [data[i] for i in range(len(data))]
    results = {}
    for name, kind in (('plain', 'EncoderDecoder'), ('CAR', 'CAREncoderDecoder')):
        model = trained_on(small_model(kind, len(unseen.metainfo['classes'])), data, 40)
        # of the features as they are: what the losses work on
        results[name] = measure_statistics(
            ExaminedModel(model, unseen, name), normalize=False
        ).summary()
    plain, car = results['plain'], results['CAR']
    assert car['intra_class_variance'] < 0.8 * plain['intra_class_variance']
    assert car['relative_variance'] < plain['relative_variance']
    assert car['center_similarity'] < plain['center_similarity']


def test_one_checkpoint_is_as_compact_with_car_as_without(tiny_data, tmp_path, capsys):
    """What enters `conv_seg` is compared in both, and CAR's conv starts as the identity."""
    plain = tiny.write_config(tmp_path / 'tiny_fcn.py', tiny_data, iterations=4, interval=4)
    config = tmp_path / 'tiny_car.py'
    config.write_text("_base_ = 'tiny_fcn.py'\nmodel = dict(type='CAREncoderDecoder')\n")
    run(train.main, plain, '--work-dir', tmp_path / 'work')
    checkpoint = str(tmp_path / 'work' / 'iter_4.pth')
    files = [str(plain), checkpoint, str(config), checkpoint]
    numbers = run_tool('compactness', files, tmp_path / 'out', '--raw')['models']
    first, second = numbers['tiny_fcn'], numbers['tiny_car']
    assert sum(entry['pixels'] for entry in first['classes'].values()) > 20
    assert first['all']['intra_class_variance'] > 0
    for key, value in first['all'].items():
        assert second['all'][key] == pytest.approx(value, rel=1e-4), key
    assert 'cosine of centres' in capsys.readouterr().out


@pytest.mark.long
def test_on_camvid(camvid_root, tmp_path):
    """The configs whose measured numbers are in configs/car/README.md, with a tenth of the images:
    half the batch, a fifth of the iterations.
    """
    iterations, results = 40, {}
    for name, path in CAMVID.items():
        cfg = Config.fromfile(configs_folder() / path)
        cfg.train_cfg.update(max_iters=iterations, val_interval=2 * iterations)
        cfg.param_scheduler[0].end = cfg.default_hooks.checkpoint.interval = iterations
        cfg.randomness = dict(seed=0)
        cfg.train_dataloader.batch_size = 4
        for split in ('train', 'val', 'test'):
            loader = cfg[f'{split}_dataloader']
            loader.update(num_workers=0, persistent_workers=False)
            loader.dataset.data_root = str(camvid_root)
        cfg.dump(tmp_path / f'{name}.py')
        run(train.main, tmp_path / f'{name}.py', '--work-dir', tmp_path / name)
        examined = ExaminedModel.load(
            tmp_path / f'{name}.py', tmp_path / name / f'iter_{iterations}.pth'
        )
        results[name] = measure_statistics(examined, normalize=False, max_images=20).summary()
    for key in ('intra_class_variance', 'relative_variance', 'center_similarity'):
        assert results['CAR'][key] < results['plain'][key], key
