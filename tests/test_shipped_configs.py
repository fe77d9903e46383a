"""Shipped configs as files of one's own: `python -m mmseg_cmdl config`."""

import pytest
from mmengine.config import Config

from mmseg_cmdl import __main__, shipped_configs
from mmseg_cmdl.errors import InputError
from tests.paths import python

NAME = 'mdrl_fcn_r50-d8_4xb2-20k_camvid-720x960'


def test_a_config_becomes_one_file_that_is_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert __main__.main(['config', NAME]) == 0
    assert "_base_ = './mdrl_fcn_r50-d8_4xb2-20k_camvid-720x960.py'" in capsys.readouterr().out
    written = tmp_path / f'{NAME}.py'
    assert '_base_' not in written.read_text()
    shipped = Config.fromfile(str(shipped_configs.config_path(NAME)))
    assert Config.fromfile(str(written)).to_dict() == shipped.to_dict()
    # and it can be built on
    (tmp_path / 'mine.py').write_text(
        f"_base_ = './{NAME}.py'\nmodel = dict(decode_head=dict(num_classes=3))\n"
    )
    head = Config.fromfile(str(tmp_path / 'mine.py')).model.decode_head
    assert (head.type, head.num_classes, head.channels) == ('MDRLHead', 3, 512)


def test_the_command_is_the_first_to_import_the_package(tmp_path):
    """Here the tests have registered everything; in a process of its own nothing has."""
    done = python('-m', 'mmseg_cmdl', 'config', NAME, '--out', 'base.py', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'base.py').is_file()


def test_an_environment_that_will_not_do_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def refuse():
        raise ImportError('mmengine is missing; run: pip install mmengine')

    monkeypatch.setattr('mmseg_cmdl.register', refuse)
    assert __main__.main(['config', NAME]) == 2
    assert capsys.readouterr().err == 'error: mmengine is missing; run: pip install mmengine\n'


def test_the_list_has_every_config_and_no_base(capsys):
    assert __main__.main(['config']) == 0
    listed = capsys.readouterr().out.split()
    assert NAME in listed
    assert len(listed) > 100
    assert all(shipped_configs.config_path(name).is_file() for name in listed)
    assert 'schedule_20k' not in listed


def test_a_file_that_is_there_stays(tmp_path, capsys):
    target = tmp_path / 'base.py'
    target.write_text('kept')
    assert __main__.main(['config', NAME, '--out', str(target)]) == 2
    assert f'error: {target} is there already' in capsys.readouterr().err
    assert target.read_text() == 'kept'
    assert __main__.main(['config', NAME, '--out', str(tmp_path)]) == 2
    assert f'error: {tmp_path} is a folder; name a file in it' in capsys.readouterr().err
    assert __main__.main(['config', NAME, '--out', str(target / 'below.py')]) == 2
    assert f'error: {target} is a file, not a folder' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        __main__.main(['config', '--out', str(target)])
    assert '--out needs the name of a shipped config' in capsys.readouterr().err


def test_a_name_that_is_not_there_gets_those_like_it():
    with pytest.raises(InputError, match=f'no shipped config .*; there are .*{NAME}'):
        shipped_configs.config_path('mdrl_fcn_r50-d8_4xb2-20k_camvid')
    with pytest.raises(InputError, match='config` lists all'):
        shipped_configs.config_path('qqq')
