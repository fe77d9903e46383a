"""Mistakes on the command lines of all tools: one line, never a traceback, never a success.

`mistakes.py` makes the list from the tools' own parsers.
"""

import argparse
import re
import shutil
from urllib.error import URLError

import pytest
from mmengine.config import Config

from mmseg_cmdl import InputError
from mmseg_cmdl.command_line import device, not_negative, number, positive, seed, tool
from mmseg_cmdl.config_file import setting_up
from mmseg_cmdl.config_overrides import add_overrides, check_overrides, write_out_defaults
from tests.paths import TOOLS, load_script
from tests.tools import mistakes

TOOL_FILES = sorted(TOOLS.rglob('*.py'))


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    return mistakes.make_files(tmp_path_factory.mktemp('mistakes'))


@pytest.fixture(autouse=True)
def quick(monkeypatch, no_launcher):
    """What mmengine's Runner finds out about the machine takes longer than all the rest."""
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)
    monkeypatch.setattr('mmengine.runner.runner.get_git_hash', str, raising=False)


@pytest.mark.parametrize('path', TOOL_FILES, ids=lambda path: path.stem)
def test_mistakes_end_in_one_line(path, files, tmp_path, monkeypatch):
    module = load_script(path)
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
    module = load_script(path)
    parser = mistakes.parser_of(path, module)
    assert parser.description
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


def test_weights_that_can_not_be_fetched_are_named():
    """Whatever fetches them, the file and both ways on are in one sentence."""
    cfg = Config(dict(model=dict(pretrained='open-mmlab://resnet50_v1c', backbone=dict())))
    for cause in (None, URLError('no network')):
        with pytest.raises(InputError) as said, setting_up(cfg, 'job.py'):
            raise (URLError('no network') if cause is None else RuntimeError('in a hub')) from cause
        for words in ('open-mmlab://resnet50_v1c can not be fetched', 'model.pretrained=FILE',
                      'model.pretrained=None'):  # fmt: skip
            assert words in str(said.value)
    backbone = dict(init_cfg=dict(type='Pretrained', checkpoint='https://x/a.pth'))
    with pytest.raises(InputError, match=r'a\.pth can .*init_cfg\.checkpoint=FILE.*init_cfg=None'):  # noqa: SIM117
        with setting_up(Config(dict(model=dict(backbone=backbone))), 'job.py'):
            raise URLError('no network')


@pytest.mark.parametrize(('take', 'right', 'wrong', 'range_'), [
    (positive, [('1', 1), ('7', 7)], ['0', '-1', '1.5', 'x', ''], 'at least 1, got 0'),
    (not_negative, [('0', 0)], ['-1', 'nan'], 'at least 0, got -1'),
    (seed, [('0', 0), ('4294967295', 2**32 - 1)], ['-1', '4294967296'],
     'from 0 to 4294967295, got -1'),
    (number(0), [('1e-4', 1e-4)], ['-1', 'nan', 'inf', 'x'], 'at least 0, got -1'),
    (device, [('cpu', 'cpu')], ['tpu', 'meta', 'cuda:99', ''], 'tpu'),
], ids=['positive', 'not_negative', 'seed', 'number', 'device'])  # fmt: skip
def test_kinds_of_values(take, right, wrong, range_):
    for text, value in right:
        assert take(text) == value
    for text in wrong:
        with pytest.raises(argparse.ArgumentTypeError, match=re.escape(text)):
            take(text)
    with pytest.raises(argparse.ArgumentTypeError, match=range_):
        take(wrong[0])


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
        check_overrides(cfg, right)
    for wrong, said in (
        ({'model.head.losses.1.w': 2}, 'losses is a list of 1; name an entry by 0 to 0'),
        ({'model.head.other.0.w': 2}, 'the config has no model.head.other, so there is no entry 0'),
        ({'model.head.channels': 'many'}, r'in the config it is a number \(4\)'),
        ({'model.head.channels.width': 1}, 'channels is 4 in the config, which has no width'),
        ({'model': 3}, 'a dict; override its entries'),
        ({'model.head.on': 'ture'}, 'on or off'),
    ):
        with pytest.raises(InputError, match=said):
            check_overrides(cfg, wrong)


def overridden(model, options):
    """The model's config with overrides, read as the tools read it."""
    parser = argparse.ArgumentParser()
    add_overrides(parser)
    given = parser.parse_args(['--cfg-options', *options]).cfg_options
    cfg = Config(dict(model=model))
    write_out_defaults(cfg, given)
    check_overrides(cfg, given)
    cfg.merge_from_dict(given)
    return cfg.model


def test_an_entry_of_a_default_in_code():
    """One entry is changed, and the rest of the default stays."""
    head, car = dict(type='MDRLHead'), dict(type='CAREncoderDecoder')
    for kind, option in (
        ('MDRLHead', 'loss_coarse'), ('FCNHead', 'loss_decode'), ('DGCWHead', 'layer'),
        ('MCIBIHead', 'loss_memory'), ('CPHead', 'loss_prior'),
    ):  # fmt: skip
        part = dict(decode_head=dict(type=kind))
        found = overridden(part, [f'model.decode_head.{option}.loss_weight=0.25'])
        expected = {**default_of(kind, option), 'loss_weight': 0.25}
        assert found.decode_head[option] == expected
    for kind, option in (('MDRLHead', 'loss_consistency'), ('ProtoSegHead', 'loss_prototype')):
        part = dict(decode_head=dict(type=kind))
        found = overridden(part, [f'model.decode_head.{option}.1.loss_weight=0.25'])
        first, second = default_of(kind, option)
        assert found.decode_head[option] == [first, {**second, 'loss_weight': 0.25}]
    losses = overridden(car, ['model.losses.1.loss_weight=0.25']).losses
    assert [loss.get('loss_weight') for loss in losses] == [None, 0.25, None]
    # the type that the command line gives counts
    both = ['model.decode_head.type=MCIBIHead', 'model.decode_head.loss_memory.loss_weight=0.25']
    assert overridden(dict(decode_head=dict(type='FCNHead')), both).decode_head.loss_memory.type
    # a config of its own for `bank`, which heads fill in
    bank = overridden(dict(decode_head=head), ['model.decode_head.bank.num_distributions=4'])
    assert bank.decode_head.bank.num_distributions == 4
    # the defaults themselves stay
    assert all(
        loss.get('loss_weight') != 0.25 for loss in default_of('MDRLHead', 'loss_consistency')
    )


def default_of(kind, name):
    import inspect

    from mmseg.registry import MODELS

    for parent in MODELS.get(kind).__mro__:
        found = inspect.signature(parent.__init__).parameters.get(name)
        if found is not None:
            return found.default


def test_an_entry_that_a_default_in_code_has_not():
    for kind, key, said in (
        ('MDRLHead', 'loss_consistency.9.loss_weight=1', 'is a list of 2; name an entry by 0 to 1'),
        ('MDRLHead', 'loss_coarse.0.loss_weight=1', 'loss_coarse is one dict, not a list'),
        ('FCNHead', 'no_such.0.loss_weight=1', 'the config has no model.decode_head.no_such'),
    ):
        with pytest.raises(InputError, match=said):
            overridden(dict(decode_head=dict(type=kind)), [f'model.decode_head.{key}'])
    cfg = Config(dict(model=dict(decode_head=dict(type='FCNHead'))))
    options = {'model.decode_head.loss_decode': ["{'type':'DiceLoss'", "'loss_weight':1}"]}
    with pytest.raises(InputError, match='write a list of dicts as Python does'):
        check_overrides(cfg, options)
