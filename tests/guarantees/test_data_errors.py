"""Mistakes in labels and data end before training damage, in a message that can be acted upon."""

import importlib.util

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image

from mmseg_cmdl.data_guard import guard_data
from tests import tiny
from tests.guarantees import cases, jobs
from tests.paths import TOOLS

pytestmark = pytest.mark.usefixtures('quick_runner')


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


class StateAtTheStart(Hook):
    """Copies weights and banks when they have been initialised and nothing has been trained."""

    def before_train(self, runner):
        self.state = {key: value.clone() for key, value in runner.model.state_dict().items()}


def failure(runner):
    """(exception of the training, names of the weights and banks that have moved before it)."""
    start = StateAtTheStart()
    runner.register_hook(start)
    guard_data(runner, 'train', 'val')
    with pytest.raises(Exception) as error:  # noqa: PT011
        runner.train()
    state = runner.model.state_dict()
    # the backbone's statistics have seen the images, whatever their labels
    moved = [key for key, value in start.state.items()
             if not torch.equal(state[key], value) and not key.startswith('backbone.')]  # fmt: skip
    moved += [key for key, value in start.state.items() if key.endswith('weight')
              and not torch.equal(state[key], value)]  # fmt: skip
    return error.value, moved


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
    # as if the disk had gone after the list was made
    guard_data(runner, 'train')
    for path in (data / 'images' / 'train').glob('*.png'):
        path.unlink()
    error, moved = failure(runner)
    check(error, str(data / 'images' / 'train'))
    assert not moved


CUTS = {
    'empty': lambda data: b'',
    'head': lambda data: data[:60],
    'half': lambda data: data[: len(data) // 2],
}


@pytest.mark.parametrize('name', cases.shared(['mdrl'], cases.METHODS))
@pytest.mark.parametrize('cut', CUTS)
@pytest.mark.parametrize('kind', ['images', 'annotations'])
def test_truncated_file(name, kind, cut, data, tmp_path):
    for path in (data / kind / 'train').glob('*.png'):
        path.write_bytes(CUTS[cut](path.read_bytes()))
    error, moved = failure(runner_of(name, data, tmp_path))
    check(error, str(data / kind / 'train'), '.png', 'can not be used', 'Fetch or convert')
    assert not moved


def test_transform_that_fails(data, tmp_path):
    """A file that can be read and an option that can't be: the message says which transform."""
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
                dict(type='RandomCrop', crop_size=(16, 16), cat_max_ratio='1')]  # fmt: skip
    error, moved = failure(runner_of('mdrl', data, tmp_path, pipeline=pipeline))
    check(
        error, str(data / 'images' / 'train'), 'RandomCrop: TypeError', 'options of the transform'
    )
    assert not moved


@pytest.fixture
def train(monkeypatch):
    """tools/train.py."""
    spec = importlib.util.spec_from_file_location('train_tool', TOOLS / 'train.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv('LOCAL_RANK', '0')
    return module.main


@pytest.mark.parametrize('serialize', [True, False])
@pytest.mark.parametrize('wrapped', [False, True])
@pytest.mark.parametrize('split', ['train', 'val'])
def test_empty_split(split, wrapped, serialize, data, tmp_path, train):
    """Named before anything is trained: folder, what lies there, what to set."""
    for path in (data / 'images' / split).glob('*.png'):
        path.rename(path.with_suffix('.jpeg'))
    (data / 'images' / split / 'notes').touch()
    path = tmp_path / 'wrapped.py'
    cfg = Config.fromfile(tiny.write_config(tmp_path / 'tiny.py', data))
    loader = cfg[f'{split}_dataloader']
    loader.dataset.serialize_data = serialize
    if wrapped:
        inside = Config(dict(dataset=loader.dataset)).dataset.to_dict()
        loader.dataset = dict(type='ConcatDataset', datasets=[inside, inside])
    cfg.visualizer.name = f'{split}{wrapped}{serialize}'
    jobs.dump(cfg, path)
    with pytest.raises(SystemExit) as error:
        train([str(path), '--work-dir', str(tmp_path / 'work')])
    count = 4 if split == 'train' else 2
    check(
        error.value, f'the {split} split is empty', str(data / 'images' / split),
        str(data / 'annotations' / split), f'The folder holds {count} .jpeg, 1 without suffix',
        'img_suffix', f'{split}_dataloader.dataset',
    )  # fmt: skip
    assert not list((tmp_path / 'work').glob('*.pth'))


def test_empty_split_file(data, tmp_path, train):
    (data / 'train.txt').write_text('')
    path = tiny.write_config(tmp_path / 'tiny.py', data)
    with pytest.raises(SystemExit) as error:
        train([str(path), '--work-dir', str(tmp_path / 'work'), '--cfg-options',
               'train_dataloader.dataset.ann_file=train.txt',
               'visualizer.name=split_file'])  # fmt: skip
    check(error.value, 'the train split is empty', str(data / 'train.txt'), 'one line an image')


def test_nothing_left_of_a_split(data, tmp_path, train):
    path = tiny.write_config(tmp_path / 'tiny.py', data)
    with pytest.raises(SystemExit) as error:
        train([str(path), '--work-dir', str(tmp_path / 'work'), '--cfg-options',
               'train_dataloader.dataset.indices=0', 'visualizer.name=indices'])  # fmt: skip
    check(error.value, 'the train split is empty', str(data / 'images' / 'train'), 'indices')
