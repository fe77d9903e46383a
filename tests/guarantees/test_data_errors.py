"""Mistakes in labels and data end before training damage, in a message that can be acted upon."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from tests import tiny
from tests.guarantees import cases


@pytest.fixture(autouse=True)
def no_compilers_asked(monkeypatch):
    """A Runner logs the versions of compilers, which takes seconds."""
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)


@pytest.fixture
def data(tmp_path):
    return tiny.write_dataset(tmp_path / 'data')


def runner_of(name, data, folder, **options):
    """Runner of the tiny job with the model of a case."""
    cfg = Config.fromfile(tiny.write_config(folder / 'tiny.py', data))
    preprocessor = cfg.model.data_preprocessor.to_dict()
    num_classes = options.pop('num_classes', len(tiny.CLASSES))
    cfg.model = cases.model_config(name, num_classes=num_classes)
    cfg.model['data_preprocessor'] = preprocessor
    cfg.work_dir = str(folder / 'work')
    cfg.experiment_name = cfg.visualizer.name = folder.name
    cfg.train_dataloader.dataset.update(options)
    return Runner.from_cfg(cfg)


def failure(runner):
    """(exception of the training, whether any weight or bank has moved)."""
    before = {key: value.clone() for key, value in runner.model.state_dict().items()}
    with pytest.raises(Exception) as error:  # noqa: PT011
        runner.train()
    state = runner.model.state_dict()
    moved = [key for key, value in before.items()
             if not torch.equal(state[key], value) and 'running' not in key
             and 'num_batches' not in key]  # fmt: skip
    # weights are initialised when training starts
    return error.value, [key for key in moved if '.bank.' in key]


def write_labels(data, change):
    for path in sorted((data / 'annotations' / 'train').glob('*.png')):
        label = change(np.array(Image.open(path)))
        Image.fromarray(label).save(path)


def check(error, *words):
    for word in words:
        assert word in str(error), f'{word!r} is not in: {error}'


METHODS = pytest.mark.parametrize('name', cases.METHODS)


@METHODS
def test_label_out_of_range(name, data, tmp_path):
    write_labels(data, lambda label: np.where(label == 2, 7, label).astype(np.uint8))
    error, moved = failure(runner_of(name, data, tmp_path))
    assert isinstance(error, ValueError)
    check(error, 'labels [7]', '.png', 'outside 0..2', 'num_classes=3', 'Set num_classes to')
    assert not moved


@METHODS
def test_num_classes_too_small(name, data, tmp_path):
    error, moved = failure(runner_of(name, data, tmp_path, num_classes=2))
    check(error, 'labels [2]', str(data / 'annotations' / 'train'), 'num_classes=2')
    assert not moved


@METHODS
def test_reduce_zero_label_off_by_one(name, data, tmp_path):
    """Labels of 1..3 and no reduce_zero_label: the message says that it is off."""
    write_labels(data, lambda label: np.where(label == 255, 255, label + 1).astype(np.uint8))
    error, moved = failure(runner_of(name, data, tmp_path))
    check(error, 'labels [3]', 'reduce_zero_label=False', 'reduce_zero_label on or off')
    assert not moved


@METHODS
def test_label_of_another_size(name, data, tmp_path):
    write_labels(data, lambda label: label[:20, :24])
    error, moved = failure(runner_of(name, data, tmp_path))
    check(error, str(data / 'annotations' / 'train'), 'is 20x24', 'is 32x32', 'must be of one size')
    assert not moved


@METHODS
def test_annotation_with_three_channels(name, data, tmp_path):
    write_labels(data, lambda label: np.stack([label] * 3, -1))
    error, moved = failure(runner_of(name, data, tmp_path))
    check(error, str(data / 'annotations' / 'train'), '(3 channels)', 'one channel', 'greyscale')
    assert not moved


@METHODS
def test_missing_image(name, data, tmp_path):
    runner = runner_of(name, data, tmp_path)
    assert len(runner.train_loop.dataloader.dataset) == 4  # the list of images has been read
    for path in (data / 'images' / 'train').glob('*.png'):
        path.unlink()
    error, moved = failure(runner)
    check(error, str(data / 'images' / 'train'))
    assert not moved


@METHODS
def test_truncated_image(name, data, tmp_path):
    for path in (data / 'images' / 'train').glob('*.png'):
        path.write_bytes(path.read_bytes()[:60])
    error, moved = failure(runner_of(name, data, tmp_path))
    check(error, str(data / 'images' / 'train'))
    assert not moved
