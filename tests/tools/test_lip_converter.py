"""tools/dataset_converters/lip.py on downloads in miniature, read back by the datasets."""

import numpy as np
import pytest
from mmseg.datasets import LIPDataset
from PIL import Image

from mmseg_cmdl.datasets import CIHPDataset
from tests.paths import TOOLS, load_script

FOLDERS = {
    'lip': {
        'train': (
            'TrainVal_images/TrainVal_images/train_images',
            'TrainVal_parsing_annotations/train_segmentations',
        ),
        'val': (
            'TrainVal_images/TrainVal_images/val_images',
            'TrainVal_parsing_annotations/val_segmentations',
        ),
    },
    'cihp': {
        'train': ('Training/Images', 'Training/Category_ids'),
        'val': ('Validation/Images', 'Validation/Category_ids'),
    },
}
COUNTS = {'train': 3, 'val': 2}


@pytest.fixture
def converter(monkeypatch):
    module = load_script(TOOLS / 'dataset_converters' / 'lip.py')
    monkeypatch.setattr(module, 'SIZES', {'lip': COUNTS, 'cihp': COUNTS})
    return module


def _ids(index):
    return (np.arange(12 * 10).reshape(12, 10) + 3 * index).astype(np.uint8) % 20


@pytest.fixture(params=FOLDERS)
def download(request, tmp_path):
    """(name, source folder)."""
    for split, folders in FOLDERS[request.param].items():
        image_folder, label_folder = (tmp_path / 'source' / folder for folder in folders)
        image_folder.mkdir(parents=True)
        label_folder.mkdir(parents=True)
        for index in range(COUNTS[split]):
            Image.new('RGB', (10, 12), (index, 0, 0)).save(image_folder / f'{split}_{index}.jpg')
            Image.fromarray(_ids(index)).save(label_folder / f'{split}_{index}.png')
    return request.param, tmp_path / 'source'


@pytest.mark.parametrize('options', [[], ['--link', '--nproc', '2']], ids=['copied', 'linked'])
def test_what_is_written_is_what_the_dataset_reads(converter, download, options, tmp_path, capsys):
    name, source = download
    out = tmp_path / 'out'
    converter.main([str(source), '-o', str(out), '--nproc', '1', *options])
    assert f'{name.upper()}: 5 images' in capsys.readouterr().out
    assert not list(out.glob('.converting_*'))
    kind = dict(lip=LIPDataset, cihp=CIHPDataset)[name]
    for split, count in COUNTS.items():
        dataset = kind(
            data_root=str(out),
            data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}'),
            pipeline=[dict(type='LoadImageFromFile'), dict(type='mmseg.LoadAnnotations')],
        )
        assert len(dataset) == count
        for index in range(count):
            assert np.array_equal(dataset[index]['gt_seg_map'], _ids(index))
            assert dataset[index]['img'].shape == (12, 10, 3)
    assert (out / 'images/train/train_0.jpg').is_symlink() == bool(options)


def test_dry_run_and_existing_folders(converter, download, tmp_path, capsys):
    _, source = download
    out = tmp_path / 'out'
    arguments = [str(source), '-o', str(out), '--nproc', '1']
    converter.main([*arguments, '--dry-run'])
    assert not out.exists()
    converter.main(arguments)
    (out / 'images/train/train_0.jpg').write_text('old')
    with pytest.raises(SystemExit, match='--overwrite'):
        converter.main(arguments)
    converter.main([*arguments, '--overwrite'])
    assert (out / 'images/train/train_0.jpg').read_bytes()[:2] == b'\xff\xd8'


def test_an_error_leaves_what_was_there(converter, download, tmp_path):
    name, source = download
    out = tmp_path / 'out'
    arguments = [str(source), '-o', str(out), '--nproc', '1', '--overwrite']
    converter.main(arguments)
    before = sorted(out.rglob('*'))
    label = source / FOLDERS[name]['val'][1] / 'val_1.png'
    for picture, said in (
        (Image.fromarray(_ids(1) + 3), r'the ids \[20, 21, 22\]'),
        (Image.new('RGB', (10, 12)), 'RGB image, not one class id'),
        (Image.fromarray(_ids(1)[:5]), '10x12, its annotation .* 10x5'),
    ):
        picture.save(label)
        with pytest.raises(SystemExit, match=said) as error:
            converter.main(arguments)
        assert 'val_1.png' in str(error.value)
    label.write_text('nothing')
    with pytest.raises(SystemExit, match=r'val_1\.png or .*can\'t be read'):
        converter.main(arguments)
    assert sorted(out.rglob('*')) == before


def test_missing_files_are_named(converter, download, tmp_path):
    name, source = download
    arguments = [str(source), '-o', str(tmp_path / 'out'), '--nproc', '1']
    (source / FOLDERS[name]['train'][1] / 'train_2.png').unlink()
    with pytest.raises(SystemExit, match=r'train_2 in .* and not in'):
        converter.main(arguments)
    (source / FOLDERS[name]['train'][0] / 'train_2.jpg').unlink()
    with pytest.raises(SystemExit, match=f'2 images with annotations, and {name.upper()} has 3'):
        converter.main(arguments)
    converter.main([*arguments, '--allow-partial'])
    assert len(list((tmp_path / 'out/images/train').iterdir())) == 2


def test_other_folders_are_refused(converter, tmp_path):
    for source, said in ((tmp_path, 'neither LIP'), (tmp_path / 'gone', 'no folder')):
        with pytest.raises(SystemExit, match=said):
            converter.main([str(source), '-o', str(tmp_path / 'out')])


def test_categories():
    """One name differs; ids, number and colours are the same, so LIP models can be tested."""
    lip, cihp = LIPDataset.METAINFO, CIHPDataset.METAINFO
    assert len(lip['classes']) == len(cihp['classes']) == 20
    different = [c for c in range(20) if lip['classes'][c] != cihp['classes'][c]]
    assert different == [10]
    assert cihp['classes'][10] == 'Torso-skin'
    assert cihp['classes'][13:16] == ('Face', 'Left-arm', 'Right-arm')
    assert cihp['palette'] == lip['palette']
