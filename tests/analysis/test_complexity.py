"""Costs of modules against counts by hand."""

import pytest
import torch
from mmengine.config import Config

from mmseg_cmdl.analysis.complexity import (
    CONTEXTS,
    build_context,
    head_of_config,
    measure_complexity,
)
from mmseg_cmdl.errors import InputError
from tests.analysis.conftest import run_tool, tool


def test_fcn_is_counted_by_hand():
    head = build_context(dict(type='FCNHead', num_convs=1, concat_input=False), 10, 6, 4)
    got = measure_complexity(head, (2, 10, 5, 7), min_seconds=None)
    assert got['params_m'] == pytest.approx((10 * 6 * 9 + 2 * 6) / 1e6)  # a conv and a norm
    assert got['gmacs'] == pytest.approx(2 * 5 * 7 * 10 * 6 * 9 / 1e9)
    assert got['ms'] is None
    # at least what comes out
    assert got['peak_mib'] * 2**20 >= 2 * 6 * 5 * 7 * 4
    assert measure_complexity(head, (1, 10, 3, 3), min_seconds=0.01)['ms'] > 0


@pytest.mark.parametrize('name', sorted(CONTEXTS))
def test_every_module_runs_and_ends_before_its_classifier(name):
    head = build_context(CONTEXTS[name], 16, 8, 5)
    assert isinstance(head.conv_seg, torch.nn.Identity)
    assert measure_complexity(head, (1, 16, 8, 8), min_seconds=None)['gmacs'] > 0


def test_the_command_writes_table_and_picture(tmp_path, capsys, trained):
    arguments = '--size 1 32 8 8 --channels 8 --seconds 0 --modules MDRL'
    arguments += ' --cfg-options model.decode_head.channels=4'
    numbers = run_tool('complexity', ['--configs', trained.fcn[0]], tmp_path, arguments)
    assert [row['module'] for row in numbers['modules']] == ['MDRL', 'fcn']
    cfg = Config.fromfile(trained.fcn[0])
    cfg.model.decode_head.channels = 4
    head = build_context(head_of_config(cfg), 32, 8, 8)
    assert head.channels == 4
    assert numbers['modules'][1]['params_m'] == pytest.approx(
        sum(p.numel() for p in head.parameters()) / 1e6
    )
    assert '| fcn ' in capsys.readouterr().out
    assert (tmp_path / 'complexity.png').stat().st_size > 5000


def test_mistakes_are_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        tool('complexity').main(['--out', str(tmp_path), '--modules', 'XYZ'])
    assert 'there is no module XYZ; there are: none (FCN), PPM' in capsys.readouterr().err
    cfg = Config(dict(model=dict(decode_head=dict(type='UPerHead', in_channels=[1, 2]))))
    with pytest.raises(InputError, match='reads several feature maps'):
        head_of_config(cfg)
