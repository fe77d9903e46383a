"""Mistakes in labels and data end before training damage, in a message that can be acted upon."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.datasets import BaseSegDataset
from mmseg.models import SegTTAModel
from mmseg.structures import SegDataSample
from PIL import Image

from mmseg_cmdl import data_guard
from mmseg_cmdl.data_guard import guard_data
from mmseg_cmdl.dataset_building import build_dataset
from mmseg_cmdl.engine import DataGuardHook
from mmseg_cmdl.sample_guard import DataError, SampleCheck, missing_annotation
from tests import tiny
from tests.guarantees import cases, jobs
from tests.paths import TOOLS, load_script

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


def refused(runner, splits, *words):
    """The guard refuses the data, in these words."""
    with pytest.raises(DataError) as error:
        guard_data(runner, *splits.split())
    check(error.value, *words)


METHODS = pytest.mark.parametrize('name', cases.METHODS)


WRONG_LABELS = {
    'out of range': (
        lambda label: np.where(label == 2, 7, label).astype(np.uint8),
        ['labels [7]', 'outside 0..2', 'num_classes=3', 'Set num_classes to'],
    ),
    # labels of 1..3 and no reduce_zero_label: the message says that it is off
    'off by one': (
        lambda label: np.where(label == 255, 255, label + 1).astype(np.uint8),
        ['labels [3]', 'reduce_zero_label=False', 'reduce_zero_label on or off'],
    ),
    'another size': (
        lambda label: label[:20, :24],
        ['is 20x24', 'is 32x32', 'must be of one size'],
    ),
    'three channels': (
        lambda label: np.stack([label] * 3, -1),
        ['(3 channels)', 'one channel', 'greyscale'],
    ),
}


@METHODS
@pytest.mark.parametrize('wrong', WRONG_LABELS)
def test_wrong_labels(name, wrong, data, tmp_path):
    change, words = WRONG_LABELS[wrong]
    write_labels(data, change)
    error, moved = failure(runner_of(name, data, tmp_path))
    assert isinstance(error, ValueError)
    check(error, str(data / 'annotations' / 'train'), '.png', *words)
    assert not moved


@METHODS
@pytest.mark.parametrize('num_classes', [2, 11])
def test_num_classes_of_other_data(name, num_classes, data, tmp_path):
    """Too many classes train without a word otherwise, and are left over from a base config."""
    runner = runner_of(name, data, tmp_path, num_classes=num_classes)
    refused(
        runner, 'train val', f'model.decode_head.num_classes is {num_classes}',
        'the train split has 3', ', '.join(tiny.CLASSES), 'Set model.decode_head.num_classes=3',
        'train_dataloader.dataset.metainfo',
    )  # fmt: skip


def test_a_runner_that_builds_its_model_later(data, tmp_path):
    """FlexibleRunner: the same questions are asked of the model's config."""
    runner = runner_of('mdrl', data, tmp_path)
    looked = data_guard.sample_check(runner.model)
    runner.model = runner.cfg.model
    assert vars(data_guard.sample_check(runner.model)) == vars(looked)
    assert looked.classes == [(3, 255)]
    assert looked.channels == 3
    runner.model.decode_head.num_classes = 11
    with pytest.raises(DataError, match=r'decode_head\.num_classes is 11'):
        guard_data(runner, 'train')


def test_num_classes_of_the_auxiliary_head(data, tmp_path):
    runner = runner_of('mdrl', data, tmp_path)
    runner.model._modules.pop('auxiliary_head', None)
    runner.model.auxiliary_head = SimpleNamespace(num_classes=19, out_channels=19)
    refused(
        runner, 'train', 'model.auxiliary_head.num_classes is 19', 'Set model.decode_head.num_cl'
    )


@pytest.mark.parametrize(('num_classes', 'out_channels'), [(2, 1), (1, 1), (2, 2)])
def test_two_classes_in_one_channel_or_two(num_classes, out_channels):
    head = SimpleNamespace(num_classes=num_classes, out_channels=out_channels)
    assert data_guard.num_labels(head) == 2


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


def test_label_out_of_range_at_any_iteration_in_a_worker(data, tmp_path):
    """One image of many has a wrong label; the sentence comes out of the worker as it is."""
    path = sorted((data / 'annotations' / 'train').glob('*.png'))[3]
    label = np.array(Image.open(path))
    label[5, 7] = 77
    Image.fromarray(label).save(path)
    runner = runner_of('mdrl', data, tmp_path, pipeline=[
        dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')
    ])  # fmt: skip
    guard_data(runner, 'train')
    loader = dict(runner._train_dataloader, num_workers=1)
    loader['sampler'] = dict(type='DefaultSampler', shuffle=False)
    batches = iter(Runner.build_dataloader(loader))
    assert len(next(batches)['inputs']) == 2
    with pytest.raises(DataError) as error:
        next(batches)
    assert str(error.value).startswith(f'labels [77] of {path} (image ')
    check(error.value, 'ignore_index=255', 'num_classes=3', 'reduce_zero_label=False')


def test_label_out_of_range_in_validation(data, tmp_path):
    """A metric counts such a pixel in the union of what was predicted there, and nowhere else."""
    for path in (data / 'annotations' / 'val').glob('*.png'):
        Image.fromarray(np.full((32, 32), 9, np.uint8)).save(path)
    runner = runner_of('mdrl', data, tmp_path)
    guard_data(runner, 'val')
    with pytest.raises(DataError, match=r'labels \[9\] of .*val.*outside 0\.\.2'):
        next(iter(Runner.build_dataloader(runner._val_dataloader)))


def test_labels_that_pass():
    """Every class, and the ignored label of each head and no other."""
    sample = SegDataSample(metainfo=dict(img_path='a.png', img_shape=(1, 4)))
    for ignore_index, label in ((255, 255), (-100, -100), (0, 1), (254, 254)):
        values = torch.tensor([[[0, 1, 2, label]]])
        sample.gt_sem_seg = PixelData(data=values)
        look = SampleCheck(list, [(3, ignore_index)])
        look([dict(data_samples=sample)])
        look = SampleCheck(list, [(3, ignore_index), (3, 7)])
        if label != 1:
            with pytest.raises(DataError, match=rf'labels \[{label}\].*ignore_index=7'):
                look([dict(data_samples=sample)])


def test_without_the_guard_the_hook_checks_each_batch(data, tmp_path):
    """Somebody's own script: the same errors, from the shipped configs' hook."""
    write_labels(data, lambda label: np.where(label == 2, 7, label).astype(np.uint8))
    runner = runner_of('mdrl', data, tmp_path)
    start = StateAtTheStart()
    runner.register_hook(start)
    runner.register_hook(DataGuardHook())
    with pytest.raises(DataError, match=r'labels \[7\] of .*png'):
        runner.train()
    (tmp_path / 'other').mkdir()
    runner = runner_of('mdrl', data, tmp_path / 'other', num_classes=11)
    runner.register_hook(DataGuardHook())
    with pytest.raises(DataError, match='num_classes is 11'):
        runner.train()


def test_reduce_zero_label_where_zero_is_a_class(data, tmp_path):
    runner = runner_of('mdrl', data, tmp_path, reduce_zero_label=True)
    refused(
        runner, 'train', '4 annotations', str(data / 'annotations' / 'train'), 'hold 0..2 and no 3',
        'Set reduce_zero_label=False in train_dataloader.dataset', tiny.CLASSES[-1],
    )  # fmt: skip


@pytest.mark.parametrize('shown', [1, 2])
def test_reduce_zero_label_that_is_meant(shown, data, tmp_path):
    """Classes from 1 on; or a few images of which nobody can tell."""
    write_labels(data, lambda label: np.where(label == 255, 0, label + shown).astype(np.uint8))
    guard_data(runner_of('mdrl', data, tmp_path, reduce_zero_label=True), 'train')


def test_no_names_of_classes(data, tmp_path):
    """A KeyError of the metric at the first validation otherwise."""
    runner = runner_of('mdrl', data, tmp_path)
    runner._val_dataloader['dataset'].pop('metainfo')
    words = 'the val split has no names of classes', 'val_dataloader.dataset.metainfo='
    refused(runner, 'train val', *words)


@pytest.mark.parametrize(
    ('image', 'annotation', 'given', 'answer'),
    [('a.png', 'a.tif', 'a.png', "'.tif' (it is '.png')"),
     ('10.png', '10_mask.png', '10.png', "'_mask.png' (it is '.png')"),
     ('x_image.png', 'x_label.png', 'x_mask.png', "'_label.png' (it is '_mask.png')"),
     ('a.png', 'b.png', 'a.png', "holds 1 files, such as b.png. Set seg_map_suffix (it is '.png')"),
     ('a.png', None, 'a.png', 'there is no folder')],
)  # fmt: skip
def test_annotations_with_another_suffix(image, annotation, given, answer, tmp_path):
    folder = tmp_path / 'masks'
    if annotation:
        folder.mkdir()
        (folder / annotation).touch()
    message = missing_annotation(str(tmp_path / image), str(folder / given))
    check(message, str(folder / given), str(tmp_path / image), answer)


def test_annotations_with_another_suffix_are_found_before_the_first_step(data, tmp_path):
    for path in (data / 'annotations' / 'train').glob('*.png'):
        path.rename(path.with_suffix('.tif'))
    with pytest.raises(DataError, match=r"set the dataset's seg_map_suffix to '\.tif'"):
        guard_data(runner_of('mdrl', data, tmp_path), 'train')


def test_a_missing_image_of_a_split_file(data, tmp_path):
    (data / 'train.txt').write_text('0\nnot_there\n')
    with pytest.raises(DataError, match=r'not_there\.png is not there. Set data_root'):
        guard_data(runner_of('mdrl', data, tmp_path, ann_file=str(data / 'train.txt')), 'train')


def test_labels_of_16_bits(data, tmp_path):
    """MMSegmentation makes 8 bits of them: 256 becomes 0."""
    write_labels(data, lambda label: label.astype(np.uint16) + 256)
    with pytest.raises(DataError, match=r'has labels up to 511.* keeps 8 bits'):
        guard_data(runner_of('mdrl', data, tmp_path), 'train')


def test_images_of_other_channels_than_the_model(data, tmp_path):
    pipeline = [dict(type='LoadImageFromFile', color_type='grayscale'),
                dict(type='LoadAnnotations'), dict(type='PackSegInputs')]  # fmt: skip
    runner = runner_of('mdrl', data, tmp_path, pipeline=pipeline)
    guard_data(runner, 'train')
    with pytest.raises(DataError, match=r'png has 1 channels, and model\..*mean 3\. Set mean'):
        next(iter(Runner.build_dataloader(runner._train_dataloader)))


@pytest.fixture
def log(caplog):
    """What a runner logs as warnings, as text."""

    def listen(runner):
        runner.logger.addHandler(caplog.handler)
        return caplog

    with caplog.at_level(logging.WARNING):
        yield listen


def test_classes_that_never_come(data, tmp_path, log):
    """Masks painted in 0 and 255: the foreground is what is ignored."""
    write_labels(data, lambda label: np.where(label == 0, 0, 255).astype(np.uint8))
    runner = runner_of('mdrl', data, tmp_path)
    said = log(runner)
    guard_data(runner, 'train')
    runner.train()  # 4 iterations of 2 images
    check(
        said.text, 'no pixel of 8 images (4 iterations) is labelled as box (1), bar (2)',
        '0 and 255', 'reduce_zero_label (it is False)', 'order of the classes',
    )  # fmt: skip
    assert said.text.count('no pixel of') == 1


def test_classes_that_come_late(data, tmp_path, log):
    """It is said once, after the iterations asked for; nothing is said where all classes came."""
    for all_come in (True, False):
        folder = tmp_path / f'{all_come}'
        folder.mkdir()
        if not all_come:
            write_labels(data, lambda label: np.where(label == 2, 1, label).astype(np.uint8))
        runner = runner_of('mdrl', data, folder)
        said = log(runner)
        runner.register_hook(DataGuardHook(iterations=3))
        guard_data(runner, 'train')
        runner.train()
        assert said.text.count('no pixel of') == (not all_come)
    check(said.text, 'no pixel of 6 images (3 iterations) is labelled as bar (2)')


@pytest.mark.parametrize(('scales', 'warns'), [([(32, 32), (48, 48)], False),
                                               ([(720, 960), (960, 720)], True)])  # fmt: skip
def test_views_of_a_base_config(scales, warns, data, tmp_path, log):
    """`--tta` with the sizes of other images than the ones that are tested."""
    runner = runner_of('mdrl', data, tmp_path)
    said = log(runner)
    dataset = runner._test_dataloader['dataset']
    dataset['pipeline'] = [
        dict(type='LoadImageFromFile'),
        dict(type='TestTimeAug', transforms=[
            [dict(type='Resize', scale=scale, keep_ratio=True) for scale in scales],
            [dict(type='LoadAnnotations')], [dict(type='PackSegInputs')],
        ]),
    ]  # fmt: skip
    runner.model = SegTTAModel(runner.model)
    guard_data(runner, 'test')
    assert ('tta_pipeline is perhaps' in said.text) == warns
    if warns:
        check(said.text, 'at 720x720 and', 'without it at 32x32')


@pytest.mark.parametrize(
    ('split', 'options', 'said'),
    [
        ('val', dict(reduce_zero_label=True), 'reduce_zero_label is True in the val split and'),
        ('test', dict(reduce_zero_label=True), 'Set reduce_zero_label=False in test_dataloader.'),
        (
            'val',
            dict(metainfo=dict(classes=tiny.CLASSES[::-1], palette=[[i] * 3 for i in range(3)])),
            f'the val split calls its classes {", ".join(tiny.CLASSES[::-1])}, and training '
            f'{", ".join(tiny.CLASSES)}',
        ),
        ('val', dict(reduce_zero_label=False), None),
    ],
)
def test_a_split_that_numbers_its_classes_otherwise(split, options, said, data, tmp_path, log):
    """Scores would be of shifted classes, or under other names. Training is built or a config."""
    runner = runner_of('mdrl', data, tmp_path, reduce_zero_label=False)
    logged = log(runner)
    getattr(runner, f'_{split}_dataloader')['dataset'].update(options)
    guard_data(runner, *(['test'] if split == 'test' else ['train', 'val']))
    assert (said or '') in logged.text
    assert ('reduce_zero_label is' in logged.text or 'calls its' in logged.text) == bool(said)


@pytest.mark.parametrize('split', ['val', 'test'])
def test_an_annotation_of_another_size_than_its_file(split, data, tmp_path):
    """In validation and test, where predictions are brought to the size of the file."""
    path = sorted((data / 'annotations' / 'val').glob('*.png'))[0]
    Image.fromarray(np.array(Image.open(path))[:20, :24]).save(path)
    runner = runner_of('mdrl', data, tmp_path)
    guard_data(runner, split)
    with pytest.raises(DataError) as error:
        runner.val() if split == 'val' else runner.test()
    check(error.value, str(path), 'is 20x24', 'is 32x32', 'load annotations after Resize')


def test_padding_with_a_label_is_told(data, tmp_path, log):
    for value, told in ((255, False), (0, True)):
        folder = tmp_path / f'{value}'
        folder.mkdir()
        runner = runner_of('mdrl', data, folder)
        said = log(runner)
        runner.model.data_preprocessor.seg_pad_val = value
        guard_data(runner, 'train')
        assert ('Set model.data_preprocessor.seg_pad_val=255' in said.text) == told


def test_a_missing_image_folder(data, tmp_path):
    runner = runner_of('mdrl', data, tmp_path, data_root=str(data) + 'n')
    words = f'{data}n', 'Set data_root or data_prefix.img_path of train_dataloader'
    refused(runner, 'train', *words)


def test_what_a_dataset_says_of_its_missing_files_is_kept(data, tmp_path, monkeypatch):
    """A FileNotFoundError without a file: "None is not there" otherwise."""

    def load_data_list(self):
        raise FileNotFoundError('the list of frames is not there; make it with frames.py')

    monkeypatch.setattr(BaseSegDataset, 'load_data_list', load_data_list)
    with pytest.raises(FileNotFoundError, match='make it with'):
        guard_data(runner_of('mdrl', data, tmp_path), 'train')


def test_a_datasets_own_error_is_kept(data, tmp_path):
    """It takes no `serialize_data`, with which an empty one is looked for."""

    class YearsDataset(BaseSegDataset):
        def __init__(self, years=()):
            raise ValueError('years must be 2001 to 2020')

    with pytest.raises(ValueError, match='years must be 2001 to 2020'):
        build_dataset(dict(type=YearsDataset), 'train')


def test_images_of_another_suffix_are_told(data, tmp_path, log):
    image = sorted((data / 'images' / 'train').glob('*'))[0]
    image.rename(image.with_suffix('.JPG'))
    runner = runner_of('mdrl', data, tmp_path)
    said = log(runner)
    guard_data(runner, 'train', 'val')
    check(said.text, 'left out of the train split: 1 .JPG in', 'beside 3 .png')
    assert 'left out of the val split' not in said.text


def test_the_guard_draws_no_random_number(data, tmp_path):
    runner = runner_of('mdrl', data, tmp_path, reduce_zero_label=False)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    guard_data(runner, 'train', 'val')
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


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
    monkeypatch.setenv('LOCAL_RANK', '0')
    return load_script(TOOLS / 'train.py').main


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
    with pytest.raises((DataError, SystemExit)) as error:
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
    with pytest.raises((DataError, SystemExit)) as error:
        train([str(path), '--work-dir', str(tmp_path / 'work'), '--cfg-options',
               'train_dataloader.dataset.ann_file=train.txt',
               'visualizer.name=split_file'])  # fmt: skip
    check(error.value, 'the train split is empty', str(data / 'train.txt'), 'one line an image')


def test_nothing_left_of_a_split(data, tmp_path, train):
    path = tiny.write_config(tmp_path / 'tiny.py', data)
    with pytest.raises((DataError, SystemExit)) as error:
        train([str(path), '--work-dir', str(tmp_path / 'work'), '--cfg-options',
               'train_dataloader.dataset.indices=0', 'visualizer.name=indices'])  # fmt: skip
    check(error.value, 'the train split is empty', str(data / 'images' / 'train'), 'indices')
