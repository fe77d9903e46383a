"""CamVidDataset on files written here, and on the real 480x360 CamVid where it is."""

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.evaluation import IoUMetric
from PIL import Image

from mmseg_cmdl.datasets import CamVidDataset
from tests.paths import ROOT

NAMES = [
    'Sky', 'Building', 'Pole', 'Road', 'Pavement', 'Tree', 'SignSymbol', 'Fence', 'Car',
    'Pedestrian', 'Bicyclist',
]  # fmt: skip
LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
DATASETS = ROOT / 'configs' / '_base_' / 'datasets'


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


def ids(*first):
    """[6, 8] with 0 to 11, 255 and 0 again, but for the first ones."""
    found = np.arange(48, dtype=np.uint8).reshape(6, 8) % 13
    found[found == 12] = 255
    found.ravel()[: len(first)] = first
    return found


@pytest.fixture
def all_ids():
    return ids()


def write(root, name, label, image_suffix='.png', size=None):
    for folder in ('images', 'annotations'):
        (root / folder / 'train').mkdir(parents=True, exist_ok=True)
    height, width = size or label.shape[:2]
    Image.new('RGB', (width, height)).save(root / 'images' / 'train' / (name + image_suffix))
    Image.fromarray(label).save(root / 'annotations' / 'train' / f'{name}.png')


def build(root, split='train', **kwargs):
    return CamVidDataset(
        data_root=str(root),
        data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}'),
        **kwargs,
    )


def test_classes_and_palette():
    meta = CamVidDataset.METAINFO
    assert list(meta['classes']) == NAMES
    assert len({tuple(color) for color in meta['palette']}) == 11
    assert meta['palette'][NAMES.index('Road')] == [128, 64, 128]
    assert meta['palette'][NAMES.index('Bicyclist')] == [0, 128, 192]


def test_void_is_ignored_and_nothing_else_changes(tmp_path, all_ids):
    write(tmp_path, 'a', all_ids)
    loaded = build(tmp_path, pipeline=LOAD)[0]['gt_seg_map']
    expected = [[255 if value in (11, 255) else value for value in row] for row in all_ids.tolist()]
    assert loaded.tolist() == expected
    assert sorted(set(loaded.ravel().tolist())) == [*range(11), 255]


def test_fewer_classes_keep_void_ignored(tmp_path, all_ids):
    write(tmp_path, 'a', all_ids)
    dataset = build(tmp_path, pipeline=LOAD, metainfo=dict(classes=('Car', 'Road')))
    expected = [[{8: 0, 3: 1}.get(value, 255) for value in row] for row in all_ids.tolist()]
    assert dataset[0]['gt_seg_map'].tolist() == expected
    assert dataset.metainfo['palette'] == [[64, 0, 128], [128, 64, 128]]


def test_void_is_not_scored(tmp_path):
    """IoUMetric on what the dataset loads equals counting pixel by pixel without void."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 12, (20, 30), dtype=np.uint8)
    write(tmp_path, 'a', label)
    dataset = build(tmp_path, pipeline=[*LOAD, dict(type='PackSegInputs')])
    sample = dataset[0]['data_samples']
    truth = sample.gt_sem_seg.data.clone()
    # two thirds right; anything at all on void
    prediction = truth.clone()
    wrong = np.array(rng.random((1, 20, 30)) < 0.33)
    prediction[wrong] = (prediction[wrong] + 1) % 11
    prediction[prediction == 255] = 4
    metric = IoUMetric(iou_metrics=['mIoU'])
    metric.dataset_meta = dataset.metainfo
    metric.process({}, [dict(pred_sem_seg=dict(data=prediction), gt_sem_seg=dict(data=truth))])

    ious = []
    for index in range(11):
        inter = union = 0
        for predicted, actual in zip(prediction.ravel().tolist(), label.ravel().tolist()):
            if actual < 11:
                inter += predicted == index and actual == index
                union += predicted == index or actual == index
        ious.append(inter / union)
    assert metric.evaluate(1)['mIoU'] == pytest.approx(100 * np.mean(ious), abs=0.006)


@pytest.mark.parametrize('suffix', ['.png', '.jpg'])
def test_image_suffix_is_found(tmp_path, all_ids, suffix):
    write(tmp_path, 'a', all_ids, suffix)
    write(tmp_path, 'b', all_ids, suffix)
    infos = build(tmp_path).load_data_list()
    assert [info['img_path'][-5:] for info in infos] == [f'a{suffix}', f'b{suffix}']
    assert [info['seg_map_path'][-5:] for info in infos] == ['a.png', 'b.png']


def test_mixed_suffixes_need_a_choice(tmp_path, all_ids):
    write(tmp_path, 'a', all_ids, '.png')
    write(tmp_path, 'b', all_ids, '.jpg')
    with pytest.raises(ValueError, match='pass img_suffix'):
        build(tmp_path)
    assert len(build(tmp_path, img_suffix='.jpg')) == 1


@pytest.mark.parametrize(('label', 'image_size', 'said'), [
    (ids(12), (6, 8), r'holds the ids \[12\] \(1 pixels\).*dataset_converters/camvid\.py'),
    (ids(31, 12, 31), (6, 8), r'holds the ids \[12, 31\] \(3 pixels\)'),
    # 16 bits, of which 8 would be a class
    (np.full((6, 8), 256 + 3, np.uint16), (6, 8), r'holds the ids \[259\] \(48 pixels\)'),
    (np.zeros((6, 8, 3), np.uint8), (6, 8), r'is a RGB image.*dataset_converters/camvid\.py'),
    (ids(), (12, 16), 'is 8x6, its image .* 16x12'),
])  # fmt: skip
def test_wrong_annotations_are_named(tmp_path, label, image_size, said):
    write(tmp_path, 'fine', ids())
    write(tmp_path, 'wrong', label, size=image_size)
    with pytest.raises(ValueError, match=rf'annotations.*wrong\.png {said}'):
        build(tmp_path)
    # the check is what found it
    assert len(build(tmp_path, check_annotations=False)) == 2


def test_unreadable_annotation(tmp_path, all_ids):
    write(tmp_path, 'a', all_ids)
    path = tmp_path / 'annotations' / 'train' / 'a.png'
    for content in (b'no image', path.read_bytes()[:50]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r'a\.png is no image'):
            build(tmp_path)


def test_missing_annotation(tmp_path, all_ids):
    for name in 'abc':
        write(tmp_path, name, all_ids)
    (tmp_path / 'annotations' / 'train' / 'b.png').unlink()
    with pytest.raises(FileNotFoundError, match=r'1 of 3 frames have no annotation.*b\.png'):
        build(tmp_path)


def test_listed_frame_without_image(tmp_path, all_ids):
    write(tmp_path, 'a', all_ids)
    (tmp_path / 'train.txt').write_text('a\nz\n')
    with pytest.raises(FileNotFoundError, match=r'1 of 2 frames have no image.*z\.png'):
        build(tmp_path, ann_file='train.txt')


def test_empty_and_absent_split(tmp_path, all_ids):
    write(tmp_path, 'a', all_ids)
    with pytest.raises(FileNotFoundError, match=r"data_prefix\['img_path'\] is .*images/val"):
        build(tmp_path, 'val')
    (tmp_path / 'images' / 'val').mkdir()
    for kwargs in ({}, dict(img_suffix='.png')):
        with pytest.raises(FileNotFoundError, match=r'no .*image .*in .*images/val'):
            build(tmp_path, 'val', **kwargs)
    write_image = tmp_path / 'images' / 'val' / 'a.png'
    Image.new('RGB', (8, 6)).save(write_image)
    with pytest.raises(FileNotFoundError, match=r"data_prefix\['seg_map_path'\]"):
        build(tmp_path, 'val')


def test_images_alone_for_prediction(tmp_path, all_ids):
    write(tmp_path, 'a', all_ids)
    dataset = CamVidDataset(
        data_root=str(tmp_path), data_prefix=dict(img_path='images/train'), pipeline=LOAD[:1]
    )
    assert dataset[0]['img'].shape == (6, 8, 3)


def test_reduce_zero_label_is_refused(tmp_path):
    with pytest.raises(ValueError, match='the sky'):
        build(tmp_path, reduce_zero_label=True)


# shares of ids 0 to 10 and void, counted from the PNG files
@pytest.mark.parametrize(('split', 'frames', 'shares'), [
    ('train', 367, [0.1685, 0.2326, 0.0098, 0.3166, 0.0449, 0.0972,
        0.0117, 0.0113, 0.0587, 0.0064, 0.0029, 0.0395]),
    ('val', 101, [0.0918, 0.2596, 0.0056, 0.2895, 0.0872, 0.1634,
        0.0089, 0.0308, 0.0175, 0.0065, 0.0222, 0.0170]),
    ('test', 233, [0.1707, 0.2461, 0.0118, 0.2581, 0.0927, 0.1125,
        0.0101, 0.0118, 0.0397, 0.0063, 0.0019, 0.0383]),
])  # fmt: skip
def test_real_camvid(camvid_root, split, frames, shares):
    dataset = build(camvid_root, split, pipeline=LOAD[1:])
    assert len(dataset) == frames
    counts = np.zeros(256, np.int64)
    for sample in dataset:
        assert sample['gt_seg_map'].shape == (360, 480)
        counts += np.bincount(sample['gt_seg_map'].ravel(), minlength=256)
    assert counts[[*range(11), 255]] / counts.sum() == pytest.approx(shares, abs=6e-5)
    assert counts[11:255].sum() == 0


@pytest.mark.parametrize(
    ('name', 'crop', 'scale'),
    [
        ('camvid', (720, 960), (720, 960)),
        ('camvid_480x360', (360, 480), (360, 480)),
        ('camvid_240x320', (240, 320), (360, 480)),
        ('camvid_180x240', (180, 240), (360, 480)),
    ],
)
def test_base_config(name, crop, scale, camvid_root):
    cfg = Config.fromfile(DATASETS / f'{name}.py')
    for split, frames in dict(train=367, val=101, test=233).items():
        settings = cfg[f'{split}_dataloader']['dataset']
        assert settings.pop('type') == 'CamVidDataset'
        settings.data_root = str(camvid_root)
        dataset = CamVidDataset(check_annotations=False, **settings)
        assert len(dataset) == frames
        sizes = [tuple(dataset[i]['inputs'].shape[1:]) for i in range(1 if split != 'train' else 8)]
        if split == 'train':
            # images enlarged at random are cropped, shrunken ones stay smaller
            assert max(sizes) == crop
            assert all(height <= crop[0] and width <= crop[1] for height, width in sizes)
        else:
            assert sizes == [scale]
