"""Files that someone else made: the interpreter stays up, nothing in them runs, nothing is lost."""

import json
import os
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmseg_cmdl import InputError
from mmseg_cmdl.checkpoint_file import (
    CHECKED,
    OtherModelError,
    StoredConfigHook,
    literal_gpu_ids,
    load_state,
    read_checkpoint,
    refuse_other_model,
    untrained_parts,
    unused_parts,
)
from tests.paths import child_environment

needs_fork = pytest.mark.skipif(not hasattr(os, 'fork'), reason='there is no fork here')


@needs_fork
@pytest.mark.skipif(not CHECKED, reason='torch.load checks nothing before 2.6')
def test_hostile_checkpoints_are_refused_by_exit_status(tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'tests.guarantees.hostile_files', str(tmp_path)],
        env=child_environment(*[path for path in sys.path if 'mmseg_cmdl_tests_' in path]),
        cwd=tmp_path, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    ended = json.loads(done.stdout.strip().splitlines()[-1])
    assert len(ended) == 19
    # refused by torch.load, one line and exit code 2 from a tool, and nothing in the file has run
    assert ended == {name: [3, 2, False] for name in ended}


def test_resuming_runs_nothing_of_the_stored_config(tiny_config, tmp_path):
    cfg = Config.fromfile(tiny_config)
    cfg.work_dir = str(tmp_path / 'work')
    cfg.train_cfg.max_iters = cfg.train_cfg.val_interval = 1
    cfg.default_hooks.checkpoint.interval = 1
    cfg.experiment_name = cfg.visualizer.name = 'stored_config'
    Runner.from_cfg(cfg).train()
    path = tmp_path / 'work' / 'iter_1.pth'
    content = torch.load(path)
    marker = tmp_path / 'RAN'
    content['meta']['config'] = f'open({str(marker)!r}, "w").write("x")\ngpu_ids = [0]\n'
    torch.save(content, path)
    cfg.train_cfg.max_iters = 2
    cfg.resume, cfg.load_from = True, str(path)
    for guarded in (True, False):
        cfg.experiment_name = cfg.visualizer.name = f'stored_config_{guarded}'
        runner = Runner.from_cfg(cfg)
        if guarded:
            runner.register_hook(StoredConfigHook())
        runner.train()
        assert runner.iter == 2
        assert marker.exists() is not guarded  # mmengine alone runs it: the file is a real one


@pytest.mark.parametrize(('text', 'ids'), [
    ('gpu_ids = [0, 1]', [0, 1]),
    ('a = 1\ngpu_ids = range(0, 4)\n', []),
    ('gpu_ids = [print(1)]', []),
    ('gpu_ids = "01"', []),
    ('model = dict(', []),
    ('(' * 100000, []),
    (None, []),
])  # fmt: skip
def test_the_one_value_of_a_stored_config_is_a_literal(text, ids):
    assert literal_gpu_ids(text) == ids


@pytest.mark.parametrize(('content', 'said'), [
    (b'', r'is empty \(0 bytes\)'),
    (b'not a checkpoint\n', 'is refused|is cut off'),
    (b'PK\x03\x04' + b'x' * 100, 'is cut off'),
])  # fmt: skip
def test_broken_files_are_named(tmp_path, content, said):
    (tmp_path / 'x.pth').write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_checkpoint(tmp_path / 'x.pth')
    torch.save(dict(state_dict=dict(weight=torch.ones(100000))), tmp_path / 'whole.pth')
    whole = (tmp_path / 'whole.pth').read_bytes()
    for cut in (1000, 40000, 65536, 200000, len(whole) - 1):
        (tmp_path / 'x.pth').write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r'is cut off .* copy or download it again'):
            read_checkpoint(tmp_path / 'x.pth')
    torch.save([1], tmp_path / 'x.pth')
    with pytest.raises(InputError, match=r'holds no weights .* but a list'):
        read_checkpoint(tmp_path / 'x.pth')


def test_a_checkpoint_of_another_method(tmp_path):
    """Parts that would be as they were initialised; of a plain checkpoint under CAR, none."""
    from tests.guarantees import cases

    plain, mdrl = cases.build('mdrl'), cases.build('mdrl')
    state = {
        key: value
        for key, value in plain.state_dict().items()
        if '.bank.' not in key and '.relation.' not in key and 'auxiliary_head' not in key
    }
    assert untrained_parts(mdrl, plain.state_dict()) == []
    counts = 'num_batches_tracked'  # old checkpoints have none
    old = {key: value for key, value in plain.state_dict().items() if not key.endswith(counts)}
    assert len(old) < len(plain.state_dict())
    assert untrained_parts(mdrl, old) == []
    assert sorted(untrained_parts(mdrl, state)) == ['decode_head.bank', 'decode_head.relation']
    state['decode_head.conv_seg.weight'] = torch.zeros(1, 1, 1, 1)
    with pytest.raises(OtherModelError, match=r'x\.pth has nothing.* decode_head\.conv_seg'):
        refuse_other_model(mdrl, state, 'x.pth', 'Give another')
    assert OtherModelError.exit_code == 1
    car = cases.build('car')
    without = {k: v for k, v in car.state_dict().items() if not k.startswith('car.')}
    assert untrained_parts(car, without) == []  # starts as the identity
    with torch.no_grad():
        car.car.linear.weight.mul_(2)
    assert untrained_parts(car, without) == ['car.linear']


def test_a_checkpoint_with_parts_that_the_model_has_not(tmp_path):
    """Each predicts otherwise than it was trained; it was scored so without a word."""
    from tests.guarantees import cases

    mdrl, with_psp = cases.build('mdrl'), cases.build('mdrl_psp')
    state = with_psp.state_dict()
    assert unused_parts(with_psp, state) == unused_parts(with_psp, {}) == []
    found = ['decode_head.context', 'decode_head.context_relation', 'decode_head.fuse_context']
    assert unused_parts(mdrl, state) == found
    with pytest.raises(OtherModelError, match=r'x\.pth has decode_head\.context, .* Give another$'):
        refuse_other_model(mdrl, state, 'x.pth', 'Give another')
    # what others add: for training alone, as tables of indices, or as no tensor at all
    extra = dict(mdrl.state_dict(), epoch=3, **{'loss_fn._extra_state': {}})
    for key in (
        'backbone.stages.0.relative_position_index',
        'backbone.fc.weight',
        'auxiliary_head.context.weight',
        'decode_head.queue',
        'decode_head.consistency.losses.2.norm.weight',
        'projector.weight',
    ):
        extra[key] = torch.zeros(1)
    refuse_other_model(mdrl, extra, 'x.pth', '')
    torch.save(dict(state_dict=cases.build('car').state_dict()), tmp_path / 'car.pth')
    plain = cases.from_config(cases.model_config(head=cases.FCN))
    with pytest.raises(OtherModelError, match=r'has car\.linear, .* with tools/fold_car\.py'):
        load_state(plain, tmp_path / 'car.pth', 'Give the config that it was trained with')
