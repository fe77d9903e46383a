"""What is written is whole or as it was."""

import os
from pathlib import Path

import pytest

from mmseg_cmdl import InputError
from mmseg_cmdl.written_files import (
    check_folder,
    make_folder,
    refuse_inside,
    refuse_same,
    replaced_folders,
    written_beside,
)


def test_a_file_is_there_at_the_end_with_what_came_beside(tmp_path):
    target = tmp_path / 'deep' / 'model.onnx'
    with written_beside(target) as file:
        file.write_text('new')
        file.with_name('model.onnx.data').write_text('weights')
        assert not target.exists()
    assert {path.name: path.read_text() for path in target.parent.iterdir()} == {
        'model.onnx': 'new', 'model.onnx.data': 'weights'
    }  # fmt: skip


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit])
def test_after_an_error_the_old_file_stands(tmp_path, error):
    target = tmp_path / 'model.onnx'
    target.write_text('old')

    def write():
        with written_beside(target) as file:
            file.write_text('half')
            raise error

    with pytest.raises(error):
        write()
    assert target.read_text() == 'old'
    assert os.listdir(tmp_path) == ['model.onnx']


def test_folders_are_swapped_together_or_not_at_all(tmp_path):
    out, names = tmp_path / 'out', ('images', 'annotations')

    def fill(text, error=None):
        with replaced_folders(out, names) as staging:
            for name in names:
                (staging / name).mkdir()
                (staging / name / 'a').write_text(text)
            if error:
                raise error

    with pytest.raises(ZeroDivisionError):
        fill('first', ZeroDivisionError())
    assert not out.exists()
    fill('first')
    with pytest.raises(KeyboardInterrupt):
        fill('second', KeyboardInterrupt())
    assert [(out / name / 'a').read_text() for name in names] == ['first', 'first']
    fill('third')
    assert [(out / name / 'a').read_text() for name in names] == ['third', 'third']
    assert sorted(os.listdir(out)) == sorted(names)


@pytest.mark.parametrize('move', range(4))
def test_an_interruption_between_the_moves_takes_them_back(tmp_path, monkeypatch, move):
    """Of two folders the old one out of the way, then the new one in its place."""
    names = ('images', 'annotations')
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / 'a').write_text('old')
    rename, left = Path.rename, iter([True] * move + [False] + [True] * move)

    def interrupted(self, target):
        if not next(left):
            raise KeyboardInterrupt
        return rename(self, target)

    def fill():
        with replaced_folders(tmp_path, names, ['train']):
            monkeypatch.setattr(Path, 'rename', interrupted)

    with pytest.raises(KeyboardInterrupt):
        fill()
    assert [(tmp_path / name / 'a').read_text() for name in names] == ['old', 'old']
    assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_inputs_are_not_written_to(tmp_path):
    source = tmp_path / 'model.pth'
    source.touch()
    (tmp_path / 'link.pth').symlink_to(source)
    for same in (source, tmp_path / 'x' / '..' / 'model.pth', tmp_path / 'link.pth'):
        with pytest.raises(InputError, match=r'--out is .*model\.pth, which is also the input'):
            refuse_same(same, [None, source], '--out')
    refuse_same(tmp_path / 'other.pth', [None, source])
    with pytest.raises(InputError, match='would be replaced; give another --out-dir'):
        refuse_inside([tmp_path / 'images' / 'a.png'], tmp_path, ('images',))
    refuse_inside([tmp_path / 'images_raw' / 'a.png'], tmp_path, ('images',))


def test_a_folder_that_could_be_made_is_not_left(tmp_path):
    check_folder(tmp_path / 'new' / 'deep')
    check_folder(tmp_path)
    assert os.listdir(tmp_path) == []


def test_places_that_can_not_be_written_to_are_named(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(InputError, match='file is a file, not a folder'):
        make_folder(tmp_path / 'file')
    with pytest.raises(InputError, match=r'the folder .*file/below can not be made'):
        make_folder(tmp_path / 'file' / 'below')
    with pytest.raises(InputError, match=r'the folder .*file/below can not be made'):
        check_folder(tmp_path / 'file' / 'below')

    def write(path):
        with written_beside(path):
            raise AssertionError

    with pytest.raises(InputError, match='is a folder; name a file in it'):
        write(tmp_path)
    with pytest.raises(InputError, match=r'file/below can not be made'):
        write(tmp_path / 'file' / 'below' / 'x')
