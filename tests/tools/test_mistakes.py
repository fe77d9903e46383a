"""Mistakes on the command lines of all tools: one line, never a traceback, never a success.

`mistakes.py` makes the list from the tools' own parsers.
"""

import argparse
import re
import shutil

import pytest
import torch
from mmengine.config import Config

from mmseg_cmdl import InputError, launch
from mmseg_cmdl.command_line import tool
from tests.paths import TOOLS
from tests.tools import mistakes

TOOL_FILES = mistakes.tools_in(TOOLS)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    return mistakes.make_files(tmp_path_factory.mktemp('mistakes'))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What mmengine's Runner finds out about the machine takes longer than all the rest."""
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)
    monkeypatch.setattr('mmengine.runner.runner.get_git_hash', str, raising=False)
    for name in ('LOCAL_RANK', 'RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.setenv(name, '')
        monkeypatch.delenv(name)


@pytest.mark.parametrize('path', TOOL_FILES, ids=lambda path: path.stem)
def test_mistakes_end_in_one_line(path, files, tmp_path, monkeypatch):
    module = mistakes.load(path)
    cases = list(mistakes.command_lines(path, mistakes.parser_of(path, module), files))
    assert len(cases) >= 3
    wrong = []
    before = sorted(file.name for file in files.iterdir())
    for case in cases:
        work = tmp_path / 'work'
        work.mkdir()
        outcome = mistakes.run(case, module, work)
        last = outcome.text.strip().splitlines()[-1:]
        if outcome.kind != 'error':
            wrong.append((outcome.kind, case.id, last))
        elif case.named and case.named not in outcome.text:
            wrong.append((f'does not name {case.named}', case.id, last))
        elif not re.search(r'^(\S+: )?error: ', outcome.text, flags=re.M):
            wrong.append(('says no error', case.id, last))
        shutil.rmtree(work)
    assert not wrong
    # nothing that was read has been written to, and nothing in a checkpoint was run
    assert sorted(file.name for file in files.iterdir()) == before
    assert 'model' in (files / 'mdrl.py').read_text()


@pytest.mark.parametrize('path', TOOL_FILES, ids=lambda path: path.stem)
def test_each_tool_has_help(path, capsys):
    """argparse fails while printing what it accepted when it was told."""
    module = mistakes.load(path)
    parser = mistakes.parser_of(path, module)
    for action in mistakes.actions_of(parser):
        assert action.help, action.dest
    text = parser.format_help()
    assert text.startswith('usage: ')
    for action in mistakes.actions_of(parser):
        assert not action.option_strings or action.option_strings[-1] in text


def test_a_bug_keeps_its_traceback():
    @tool
    def main(argv=None):
        raise argv

    for bug in (ZeroDivisionError('x'), ValueError('x'), OSError('of a decoder')):
        with pytest.raises(type(bug)):
            main(bug)


def test_expected_failures_become_exit_codes(capsys, monkeypatch):
    @tool
    def main(argv=None):
        if isinstance(argv, BaseException):
            raise argv
        return argv

    assert main(7) == 7
    mistake = InputError('no file x')
    with pytest.raises(SystemExit, match='error: no file x') as end:
        main(mistake)
    assert end.value.code == 2
    assert capsys.readouterr().err == 'error: no file x\n'
    with pytest.raises(SystemExit) as end:
        main(PermissionError(13, 'Permission denied', 'secret.py'))
    assert capsys.readouterr().err == 'error: secret.py: Permission denied\n'
    mistake.exit_code = 1
    with pytest.raises(SystemExit) as end:
        main(mistake)
    assert end.value.code == 1
    monkeypatch.setenv('MMSEG_CMDL_TRACEBACK', '1')
    with pytest.raises(InputError):
        main(mistake)


@pytest.mark.parametrize(('kind', 'right', 'wrong'), [
    ('positive', [('1', 1), ('7', 7)], ['0', '-1', '1.5', 'x', '']),
    ('not_negative', [('0', 0)], ['-1', 'nan']),
    ('seed', [('0', 0), ('4294967295', 2**32 - 1)], ['-1', '4294967296']),
    ('device', [('cpu', 'cpu')], ['tpu', 'meta', 'cuda:99', '']),
])  # fmt: skip
def test_kinds_of_values(kind, right, wrong):
    from mmseg_cmdl import command_line

    take = getattr(command_line, kind)
    for text, value in right:
        assert take(text) == value
    for text in wrong:
        with pytest.raises(argparse.ArgumentTypeError, match=re.escape(text)):
            take(text)


def test_numbers_are_finite_and_in_range():
    from mmseg_cmdl.command_line import number

    assert number(0)('1e-4') == 1e-4
    for text in ('nan', 'inf', '-1', 'x'):
        with pytest.raises(argparse.ArgumentTypeError):
            number(0)(text)
    assert torch.get_num_threads() >= 1


def test_overrides_that_are_right_pass():
    """And those of the list of mistakes are wrong for their own sake."""
    cfg = Config(dict(
        model=dict(type='A', head=dict(channels=4, losses=[dict(w=1.0)], context=None, on=True)),
        scale=1,
    ))  # fmt: skip
    for right in (
        {'model.head.channels': 8}, {'model.head.losses.0.w': 2}, {'model.head.new.key': 'x'},
        {'model.head.context': dict(type='B')}, {'model.head.context.type': 'B'}, {'scale': 0.5},
        {'model.head': None}, {'model.head.losses': [dict(w=3)]}, {'model.head.on': False},
        {'model.head.channels': None}, {'model.head.channels': [4, 8]}, {'new': 'text'},
    ):  # fmt: skip
        launch.check_overrides(cfg, right)
    for wrong, said in (
        ({'model.head.losses.1.w': 2}, 'losses is a list of 1; name an entry by 0 to 0'),
        ({'model.head.other.0.w': 2}, 'the config has no model.head.other, so there is no entry 0'),
        ({'model.head.channels': 'many'}, r'in the config it is a number \(4\)'),
        ({'model.head.channels.width': 1}, 'channels is 4 in the config, which has no width'),
        ({'model': 3}, 'a dict; override its entries'),
        ({'model.head.on': 'ture'}, 'on or off'),
    ):
        with pytest.raises(InputError, match=said):
            launch.check_overrides(cfg, wrong)
