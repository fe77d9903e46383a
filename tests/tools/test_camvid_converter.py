"""tools/dataset_converters/camvid.py on downloads in miniature, and on the real 480x360 CamVid."""

import random
import re

import numpy as np
import pytest
from PIL import Image

from mmseg_cmdl.datasets import CamVidDataset
from mmseg_cmdl.errors import InputError
from tests.datasets.test_camvid import NAMES, build
from tests.paths import ROOT, load_script, python

SCRIPT = ROOT / 'tools' / 'dataset_converters' / 'camvid.py'
SPLITS = {'train': 367, 'val': 101, 'test': 233}
CLASSES = tuple(NAMES)

# label_colors.txt of the data set, and SegNet's merging, written down apart from the converter
TABLE = """
64 128 64 Animal Pedestrian
192 0 128 Archway Building
0 128 192 Bicyclist Bicyclist
0 128 64 Bridge Building
128 0 0 Building Building
64 0 128 Car Car
64 0 192 CartLuggagePram Pedestrian
192 128 64 Child Pedestrian
192 192 128 Column_Pole Pole
64 64 128 Fence Fence
128 0 192 LaneMkgsDriv Road
192 0 64 LaneMkgsNonDriv Road
128 128 64 Misc_Text SignSymbol
192 0 192 MotorcycleScooter Bicyclist
128 64 64 OtherMoving Car
64 192 128 ParkingBlock Pavement
64 64 0 Pedestrian Pedestrian
128 64 128 Road Road
128 128 192 RoadShoulder Pavement
0 0 192 Sidewalk Pavement
192 128 128 SignSymbol SignSymbol
128 128 128 Sky Sky
64 128 192 SUVPickupTruck Car
0 0 64 TrafficCone Pole
0 64 64 TrafficLight SignSymbol
192 64 128 Train Car
128 128 0 Tree Tree
192 128 192 Truck_Bus Car
64 0 64 Tunnel Building
192 192 0 VegetationMisc Tree
0 0 0 Void -
64 192 0 Wall Building
"""
ID_OF_COLOR = {}
for _row in TABLE.split('\n')[1:-1]:
    _red, _green, _blue, _, _merged = _row.split()
    ID_OF_COLOR[int(_red), int(_green), int(_blue)] = (
        CLASSES.index(_merged) if _merged != '-' else 255
    )
PALETTE = np.array(list(ID_OF_COLOR), np.uint8)


camvid = load_script(SCRIPT)


def naive_ids(colors):
    return [[ID_OF_COLOR[tuple(pixel)] for pixel in row] for row in colors.tolist()]


def read(path):
    return np.asarray(Image.open(path))


def snapshot(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob('*'))
    }


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    """The original download with 4x6 frames."""
    root = tmp_path_factory.mktemp('original')
    images, labels = root / '701_StillsRaw_full', root / 'LabeledApproved_full'
    images.mkdir()
    labels.mkdir()
    rng = np.random.default_rng(0)
    for names in camvid.split_names().values():
        for name in names:
            Image.fromarray(rng.integers(0, 256, (4, 6, 3), np.uint8)).save(images / f'{name}.png')
            label = PALETTE[rng.integers(0, 32, (4, 6))]
            Image.fromarray(label).save(labels / f'{name}_L.png')
    return root


@pytest.fixture
def small(original, tmp_path):
    """Two frames of the download in a folder of their own, to be spoilt."""
    root = tmp_path / 'small'
    for folder, suffix in (('701_StillsRaw_full', '.png'), ('LabeledApproved_full', '_L.png')):
        (root / folder).mkdir(parents=True)
        for name in ('0006R0_f00930', 'Seq05VD_f02610'):
            path = root / folder / (name + suffix)
            path.write_bytes((original / folder / path.name).read_bytes())
    return root


@pytest.fixture
def segnet(tmp_path):
    """The 480x360 copy with 4x6 frames and its lists."""
    root = tmp_path / 'SegNet' / 'CamVid'
    rng = np.random.default_rng(1)
    for split, names in camvid.split_names().items():
        (root / split).mkdir(parents=True)
        (root / f'{split}annot').mkdir()
        lines = []
        for name in names:
            Image.fromarray(rng.integers(0, 256, (4, 6, 3), np.uint8)).save(
                root / split / f'{name}.png'
            )
            Image.fromarray(rng.integers(0, 12, (4, 6), np.uint8)).save(
                root / f'{split}annot' / f'{name}.png'
            )
            lines.append(
                f'/SegNet/CamVid/{split}/{name}.png /SegNet/CamVid/{split}annot/{name}.png\n'
            )
        (root / f'{split}.txt').write_text(''.join(lines))
    return root.parent


def label_of(root, name='0006R0_f00930'):
    return root / 'LabeledApproved_full' / f'{name}_L.png'


def test_splits_are_the_usual_ones():
    names = camvid.split_names()
    assert {split: len(set(frames)) for split, frames in names.items()} == SPLITS
    assert len({name for frames in names.values() for name in frames}) == 701
    # sequences of the database: frames, first and last
    for pattern, count, first, last in [
        ('0001TP_', 124, '006690', '010380'),
        ('0006R0_f', 101, '00930', '03930'),
        ('0016E5_', 305, '00390', '08640'),
        ('Seq05VD_f', 171, '00000', '05100'),
    ]:
        numbers = sorted(
            name[len(pattern) :]
            for frames in names.values()
            for name in frames
            if name.startswith(pattern)
        )
        assert (len(numbers), numbers[0], numbers[-1]) == (count, first, last)


def test_splits_of_real_camvid(camvid_root):
    for split, names in camvid.split_names().items():
        assert sorted(names) == sorted(
            path.stem for path in (camvid_root / 'annotations' / split).iterdir()
        )


def test_color_table():
    assert len(ID_OF_COLOR) == 32
    table = camvid.color_table()
    for (red, green, blue), index in ID_OF_COLOR.items():
        assert table[red * 65536 + green * 256 + blue] == index
    assert (table != 11).sum() == 32
    assert camvid.CLASSES == CLASSES == CamVidDataset.METAINFO['classes']


def test_original_is_converted_exactly(original, tmp_path, capsys):
    out = tmp_path / 'camvid'
    camvid.main([str(original), '-o', str(out)])
    printed, progress = capsys.readouterr()
    assert '701/701' in progress
    assert f'train 367, val 101, test 233: written to {out}' in printed
    assert sorted(path.name for path in out.iterdir()) == ['annotations', 'images']

    counts = np.zeros(256, int)
    for split, names in camvid.split_names().items():
        assert {path.stem for path in (out / 'images' / split).iterdir()} == set(names)
        for name in names:
            ids = read(out / 'annotations' / split / f'{name}.png')
            assert ids.tolist() == naive_ids(read(label_of(original, name)))
            counts += np.bincount(ids.ravel(), minlength=256)
            copy = out / 'images' / split / f'{name}.png'
            assert copy.read_bytes() == (original / '701_StillsRaw_full' / copy.name).read_bytes()
    for name, index in [('Road', 3), ('void (255)', 255)]:
        share = re.search(rf'{re.escape(name)} +([\d.]+)%', printed)[1]
        assert float(share) == pytest.approx(100 * counts[index] / counts.sum(), abs=0.006)

    for split, frames in SPLITS.items():
        assert len(build(out, split)) == frames


def test_segnet_copy_is_converted_exactly(segnet, tmp_path):
    out = tmp_path / 'out'
    counts, pixels, unknown = camvid.convert(segnet, out)  # the folder above will do
    assert counts == SPLITS
    assert unknown == 0
    for split, names in camvid.split_names().items():
        for name in names:
            before = read(segnet / 'CamVid' / f'{split}annot' / f'{name}.png')
            after = read(out / 'annotations' / split / f'{name}.png')
            assert after.tolist() == [
                [255 if value == 11 else value for value in row] for row in before.tolist()
            ]
            assert (out / 'images' / split / f'{name}.png').is_file()
    assert pixels.sum() == 701 * 24
    assert pixels[11] == 0
    assert pixels[255] > 0


def test_segnet_copy_without_lists(segnet, tmp_path):
    for split in SPLITS:
        (segnet / 'CamVid' / f'{split}.txt').unlink()
    counts, _, _ = camvid.convert(segnet / 'CamVid', tmp_path / 'out', dry_run=True)
    assert counts == SPLITS


def test_processes_give_the_same(original, tmp_path):
    camvid.convert(original, tmp_path / 'one')
    camvid.convert(original, tmp_path / 'two', nproc=2)
    assert snapshot(tmp_path / 'one') == snapshot(tmp_path / 'two')


def test_dry_run_reads_everything_and_writes_nothing(original, small, tmp_path, capsys):
    out = tmp_path / 'camvid'
    before = snapshot(tmp_path)
    camvid.main([str(original), '-o', str(out), '--dry-run'])
    assert 'nothing written' in capsys.readouterr().out
    assert snapshot(tmp_path) == before
    Image.fromarray(np.full((4, 6, 3), 9, np.uint8)).save(label_of(small))
    with pytest.raises(InputError, match='24 pixels'):
        camvid.convert(small, out, dry_run=True, allow_partial=True)
    assert not out.exists()


def test_unknown_color_names_file_color_and_pixel(small, tmp_path):
    colors = read(label_of(small)).copy()
    colors[2, 5] = (26, 27, 28)
    colors[3, 0] = (26, 27, 28)
    Image.fromarray(colors).save(label_of(small))
    with pytest.raises(InputError) as caught:
        camvid.convert(small, tmp_path / 'out', allow_partial=True)
    message = str(caught.value)
    assert str(label_of(small)) in message
    assert '2 pixels' in message
    assert 'x=5, y=2' in message
    assert '(26, 27, 28)' in message
    assert '--unknown-as-void' in message
    assert not (tmp_path / 'out').exists()

    _, _, unknown = camvid.convert(
        small, tmp_path / 'out', allow_partial=True, unknown_as_void=True
    )
    assert unknown == 2
    ids = read(tmp_path / 'out' / 'annotations' / 'train' / '0006R0_f00930.png')
    assert ids[2, 5] == ids[3, 0] == 255
    colors[2, 5] = colors[3, 0] = 0
    assert ids.tolist() == naive_ids(colors)


@pytest.mark.parametrize(('stray', 'fine'), [(175, True), (176, False)])
def test_the_known_bad_label_is_let_through(small, tmp_path, stray, fine):
    """Seq05VD_f02610_L.png as released has 175 pixels of no class's colour."""
    name = 'Seq05VD_f02610'
    colors = np.full((20, 10, 3), 128, np.uint8)
    colors.reshape(-1, 3)[:stray] = (128, 128, 26)
    Image.fromarray(colors).save(label_of(small, name))
    Image.fromarray(colors).save(small / '701_StillsRaw_full' / f'{name}.png')
    if fine:
        _, _, unknown = camvid.convert(small, tmp_path / 'out', allow_partial=True)
        assert unknown == 175
        ids = read(tmp_path / 'out' / 'annotations' / 'test' / f'{name}.png').ravel()
        assert ids.tolist() == [255] * 175 + [0] * 25
    else:
        with pytest.raises(InputError, match='176 pixels'):
            camvid.convert(small, tmp_path / 'out', allow_partial=True)


def test_missing_files_are_named(small, tmp_path):
    with pytest.raises(InputError, match=r'1398 files are missing.*0001TP_006690\.png'):
        camvid.convert(small, tmp_path / 'out')
    counts, _, _ = camvid.convert(small, tmp_path / 'out', allow_partial=True)
    assert counts == {'train': 1, 'val': 0, 'test': 1}
    label_of(small).unlink()
    label_of(small, 'Seq05VD_f02610').unlink()
    with pytest.raises(InputError, match='not one frame'):
        camvid.convert(small, tmp_path / 'out2', allow_partial=True)


def test_wrong_kinds_of_files(small, segnet, tmp_path):
    out = tmp_path / 'out'

    def fails(source, words):
        with pytest.raises(InputError, match=words):
            camvid.convert(source, out, allow_partial=True)
        assert not out.exists()

    path, good = label_of(small), label_of(small).read_bytes()
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(path)
    fails(small, r'0006R0_f00930_L\.png is a L image.*--layout segnet')
    Image.fromarray(np.zeros((4, 7, 3), np.uint8)).save(path)
    fails(small, r'0006R0_f00930\.png is 6x4, its label .*_L\.png 7x4')
    path.write_bytes(good[:60])
    fails(small, r"_L\.png can't be read")
    path.write_bytes(good)
    image = small / '701_StillsRaw_full' / '0006R0_f00930.png'
    image.write_bytes(image.read_bytes()[:60])
    fails(small, r"00930\.png can't be read")

    path = segnet / 'CamVid' / 'valannot' / '0016E5_07959.png'
    Image.fromarray(np.array([[0, 3, 12, 31]] * 4, np.uint8)).save(path)
    fails(segnet, r'0016E5_07959\.png: ids \[12, 31\] are above 11 .* x=2, y=0')
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(path)
    fails(segnet, r'0016E5_07959\.png is a RGB image.*--layout original')


def test_wrong_lists(segnet, tmp_path):
    listing = segnet / 'CamVid' / 'val.txt'
    lines = listing.read_text().splitlines()
    listing.write_text('\n'.join(lines[:-1]))
    with pytest.raises(InputError, match="'val': 100"):
        camvid.convert(segnet, tmp_path / 'out', dry_run=True)
    listing.write_text('\n'.join([*lines[:-1], lines[0]]))
    with pytest.raises(InputError, match=r'1 frames are listed twice.*0016E5_07959'):
        camvid.convert(segnet, tmp_path / 'out', dry_run=True)
    listing.write_text('one two three')
    with pytest.raises(InputError, match=r'val\.txt.* 3 words'):
        camvid.convert(segnet, tmp_path / 'out', dry_run=True)


def test_unknown_layout(tmp_path, small):
    with pytest.raises(
        InputError,
        match='701_StillsRaw_full, LabeledApproved_full or train, trainannot',
    ):
        camvid.convert(tmp_path, tmp_path / 'out')
    with pytest.raises(InputError, match='does not hold the folders train, trainannot'):
        camvid.convert(small, tmp_path / 'out', layout='segnet')


def test_what_is_there_is_kept(small, tmp_path):
    out = tmp_path / 'out'
    (out / 'images').mkdir(parents=True)
    (out / 'annotations').mkdir()
    (out / 'images' / 'precious.png').write_text('one')
    (out / 'annotations' / 'precious.png').write_text('two')
    (out / 'other.txt').write_text('three')
    before = snapshot(out)

    def fails(**options):
        with pytest.raises(InputError):
            camvid.convert(small, out, allow_partial=True, **options)
        assert snapshot(out) == before

    fails()  # not told to overwrite

    # a bad last label: everything else has been written by then
    path = label_of(small, 'Seq05VD_f02610')
    good = path.read_bytes()
    path.write_bytes(b'')
    fails(overwrite=True)
    fails(overwrite=True, nproc=2)
    path.write_bytes(good)

    camvid.convert(small, out, allow_partial=True, overwrite=True)
    assert {str(path.relative_to(out)) for path in out.rglob('*.*')} == {
        'other.txt',
        'images/train/0006R0_f00930.png',
        'images/test/Seq05VD_f02610.png',
        'annotations/train/0006R0_f00930.png',
        'annotations/test/Seq05VD_f02610.png',
    }


def test_command_line(small, tmp_path):
    failed = python(SCRIPT, small, cwd=tmp_path)
    assert failed.returncode == 2
    assert 'error: 1398 files are missing' in failed.stderr
    assert 'Traceback' not in failed.stderr
    done = python(SCRIPT, small, '--allow-partial', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / 'data' / 'camvid').rglob('*.png'))) == 4  # the default folder


def test_real_camvid_as_the_repository_lays_it_out(camvid_root, tmp_path):
    """20 frames a split: ids and images come out as they are, void as 255."""
    for split in SPLITS:
        names = sorted(path.stem for path in (camvid_root / 'images' / split).iterdir())
        names = random.Random(0).sample(names, 20)
        for folder in (split, f'{split}annot'):
            (tmp_path / 'in' / folder).mkdir(parents=True)
        for name in names:
            (tmp_path / 'in' / split / f'{name}.jpg').symlink_to(
                camvid_root / 'images' / split / f'{name}.jpg'
            )
            (tmp_path / 'in' / f'{split}annot' / f'{name}.png').symlink_to(
                camvid_root / 'annotations' / split / f'{name}.png'
            )
        (tmp_path / 'in' / f'{split}.txt').write_text(
            '\n'.join(f'{split}/{name}.jpg {split}annot/{name}.png' for name in names)
        )
    counts, pixels, _ = camvid.convert(tmp_path / 'in', tmp_path / 'out', allow_partial=True)
    assert counts == dict.fromkeys(SPLITS, 20)
    assert pixels.sum() == 60 * 360 * 480
    for path in (tmp_path / 'out' / 'annotations').rglob('*.png'):
        before = read(camvid_root / path.relative_to(tmp_path / 'out')).astype(int)
        assert (read(path) - before == np.where(before == 11, 244, 0)).all()
    assert len(list((tmp_path / 'out' / 'images').rglob('*.jpg'))) == 60
