"""A job that was stopped, or killed, and resumed is equal to one that never was, bit for bit."""

import logging
import signal

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import ExponentialMovingAverage
from mmengine.runner import Runner, load_checkpoint

from mmseg_cmdl.data_guard import guard_data
from mmseg_cmdl.errors import InputError
from tests import tiny
from tests.guarantees import cases, jobs
from tests.paths import ROOT

EMA = {'plain': None, 'ema': False, 'ema_buffers': True}
# `make test` takes each method by itself, and one with averaged weights and buffers
KINDS = [
    pytest.param(name, kind, marks=() if kind == 'plain' or (name, kind) == ('mdrl', 'ema_buffers')
                 else pytest.mark.long)
    for name in cases.METHODS for kind in EMA
]  # fmt: skip
N, K = 6, 4  # iterations, and where the job is stopped


@pytest.fixture(scope='module')
def finished(tmp_path_factory, tiny_data, request):
    """Folder with the work dirs of the jobs that tests were asked for, and their exit statuses."""
    asked = [
        item.callspec.params for item in request.session.items
        if item.path == request.path and 'finished' in item.fixturenames
    ]  # fmt: skip
    pairs = sorted({(x['name'], x.get('kind', 'plain')) for x in asked})
    killed = sorted({x['name'] for x in asked if 'kind' not in x})
    folder = tmp_path_factory.mktemp('restart')
    base = tiny.write_config(folder / 'tiny.py', tiny_data)
    queue = []

    def add(job, name, work_dir, resume, **options):
        # all are planned for N iterations, as MCIBI's momentum depends on how many there will be
        config = jobs.write_config(folder / f'{job}.py', base, name, N, 2, **options)
        queue.append(
            dict(name=job, config=config, work_dir=str(folder / work_dir), resume=resume)
        )  # fmt: skip

    for name, kind in pairs:
        key, ema = f'{name}-{kind}', EMA[kind]
        add(f'{key}-whole', name, f'{key}-whole', False, ema=ema)
        add(f'{key}-first', name, f'{key}-parts', False, ema=ema, stop_at=K)
        add(f'{key}-second', name, f'{key}-parts', True, ema=ema)
    for name in killed:  # in iteration 5 of 6, after the checkpoint of iteration 4
        add(f'{name}-killed', name, f'{name}-kill', False, kill_at=K)
        add(f'{name}-revived', name, f'{name}-kill', True)
    return folder, jobs.run_all(folder, queue)


def _saved(folder, name, iteration=N):
    return torch.load(folder / name / f'iter_{iteration}.pth')


def _assert_equal(got, expected, path=''):
    """Two nested structures of tensors and plain values, to the bit."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(got, expected), path
    elif isinstance(expected, dict):
        assert got.keys() == expected.keys(), path
        for key in expected:
            _assert_equal(got[key], expected[key], f'{path}/{key}')
    elif isinstance(expected, (list, tuple)):
        assert len(got) == len(expected), path
        for index, pair in enumerate(zip(got, expected)):
            _assert_equal(*pair, f'{path}/{index}')
    else:
        assert got == expected, path


def _assert_same_state(got, expected):
    for part in ('state_dict', 'optimizer', 'param_schedulers', 'ema_state_dict'):
        assert (part in got) == (part in expected), part
        if part in expected:
            _assert_equal(got[part], expected[part], part)
    # both schedules have moved
    assert got['optimizer']['param_groups'][0]['momentum'] < 0.9
    assert got['optimizer']['param_groups'][0]['lr'] < 0.05
    # what was logged: losses, momentum of MCIBI's memory, pixels left out
    mine, theirs = (x['message_hub']['log_scalars'] for x in (got, expected))
    names = [key for key in theirs if key.startswith('train/') and 'time' not in key]
    assert 'train/loss' in names
    for key in names:
        assert mine[key].data[0].tolist() == theirs[key].data[0].tolist(), key
    return names


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'kind'), KINDS)
def test_resumed_equals_uninterrupted(finished, name, kind):
    """Weights, banks, averaged weights, optimizer, schedule and losses; dropout is on."""
    folder, status = finished
    key = f'{name}-{kind}'
    for job in ('whole', 'first', 'second'):
        assert status[f'{key}-{job}'] == 0, (folder / f'{key}-{job}.log').read_text()[-3000:]
    whole, parts = (_saved(folder, f'{key}-{x}') for x in ('whole', 'parts'))
    assert whole['meta']['iter'] == parts['meta']['iter'] == N
    logged = _assert_same_state(parts, whole)
    half = _saved(folder, f'{key}-parts', K)
    moved = [k for k, v in whole['state_dict'].items() if not torch.equal(v, half['state_dict'][k])]
    assert any('conv_seg.weight' in k for k in moved)
    if name in ('mdrl', 'mcibi'):
        assert any('.bank.' in k and k.endswith(('distributions', 'features')) for k in moved)
        assert 'train/decode.stat_left_out_pixels' in logged
    if name == 'mcibi':
        assert 'train/decode.stat_memory_momentum' in logged
    assert ('ema_state_dict' in whole) == (kind != 'plain')
    assert 'Advance dataloader' in (folder / f'{key}-second.log').read_text()


@pytest.mark.slow
@pytest.mark.parametrize('name', cases.shared(['mdrl', 'mcibi'], cases.METHODS))
def test_a_killed_job_resumes_from_its_last_checkpoint(finished, name):
    """SIGKILL after backward, when the bank in memory is ahead of the one on disk."""
    folder, status = finished
    assert status[f'{name}-killed'] == -signal.SIGKILL
    assert status[f'{name}-revived'] == 0, (folder / f'{name}-revived.log').read_text()[-3000:]
    assert f'resumed epoch: 0, iter: {K}' in (folder / f'{name}-revived.log').read_text()
    _assert_same_state(_saved(folder, f'{name}-kill'), _saved(folder, f'{name}-plain-whole'))


@pytest.mark.slow
@pytest.mark.parametrize(
    'method', ['mdrl', *(pytest.param(x, marks=pytest.mark.long) for x in ('mcibi', 'dgcw', ''))]
)
def test_a_shipped_config_resumes_as_if_it_had_not_been_stopped(method, tmp_path):
    """As shipped: no seed is set, dropout and augmentation are on, two workers load the images."""
    name = f'{method}_fcn_r18s-d8_1xb8-demo_synthetic-128x128'.lstrip('_')
    common = [
        str(ROOT / 'configs' / (method or 'baselines') / f'{name}.py'),
        '--cfg-options', 'train_cfg.max_iters=6', 'default_hooks.checkpoint.interval=4',
        'default_hooks.logger.interval=1', 'train_dataloader.batch_size=2',
        'model.data_preprocessor.size=(64,64)', 'train_dataloader.dataset.size=(64,64)',
        'train_dataloader.dataset.pipeline.3.crop_size=(64,64)',
        'train_cfg.val_interval=1000', 'default_hooks.checkpoint.max_keep_ckpts=3',
    ]  # fmt: skip
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    jobs_ = [
        dict(name='whole', arguments=[*common, '--work-dir', str(whole)]),
        dict(name='second', arguments=[*common, '--work-dir', str(parts), '--resume',
                                       str(whole / 'iter_4.pth')]),
    ]  # fmt: skip
    for job, status in jobs.run_all(tmp_path, jobs_).items():
        assert status == 0, (tmp_path / f'{job}.log').read_text()[-3000:]
    got, expected = (torch.load(folder / 'iter_6.pth') for folder in (parts, whole))
    assert got['meta']['seed'] == expected['meta']['seed']
    for part in ('state_dict', 'optimizer', 'param_schedulers'):
        _assert_equal(got[part], expected[part], part)
    half = torch.load(whole / 'iter_4.pth')['state_dict']
    assert not torch.equal(
        half['decode_head.conv_seg.weight'], got['state_dict']['decode_head.conv_seg.weight']
    )


# ---- banks of other sizes, and none ----


@pytest.mark.usefixtures('quick_runner')
@pytest.mark.parametrize(
    ('theirs', 'num_classes', 'said'),
    [
        ('mdrl', 5, 'conv_seg.weight as 5x8x1x1, the model as 3x8x1x1'),
        # the one line changed, and the job resumed
        ('dgcw', 3, r'has no decode_head\.'),
        ('mdrl_psp', 3, r'has decode_head\.context\..*, the model has not'),
    ],
)
def test_another_model_is_not_resumed(theirs, num_classes, said, tiny_data, tmp_path):
    """The optimizer's first step would end in sizes of tensors that don't match."""
    theirs = cases.build(theirs, num_classes=num_classes)
    path = tmp_path / 'iter_3.pth'
    optimizer = torch.optim.SGD(theirs.parameters(), 0.1)
    torch.save(
        dict(
            state_dict=theirs.state_dict(),
            optimizer=optimizer.state_dict(),
            meta=dict(iter=3, epoch=0),
        ),
        path,
    )
    cfg = Config.fromfile(tiny.write_config(tmp_path / 'tiny.py', tiny_data))
    cfg.model = dict(
        cases.model_config('mdrl', num_classes=3), data_preprocessor=cfg.model.data_preprocessor
    )
    cfg.work_dir, cfg.resume, cfg.load_from = str(tmp_path / 'work'), True, str(path)
    cfg.visualizer.name = cfg.experiment_name = tmp_path.name
    runner = Runner.from_cfg(cfg)
    guard_data(runner, 'train', 'val')
    with pytest.raises(InputError, match=said):
        runner.train()


@pytest.fixture
def log(caplog):
    """What mmengine logs, as text."""
    # the one that `print_log(..., 'current')` uses: a Runner of another test may have made it
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


MEMORIES = ['mdrl', 'mcibi']
OTHER_SIZES = (
    ('mdrl', dict(num_classes=7), ['num_classes=7 in the checkpoint and 5']),
    (
        'mdrl',
        dict(head_options=dict(bank=dict(cases.BANK, num_distributions=2))),
        ['num_distributions=2 in the checkpoint and 3'],
    ),
    (
        'mdrl',
        dict(head_options=dict(bank=dict(cases.BANK, channels=4))),
        ['channels=4 in the checkpoint and 8'],
    ),
    (
        'mdrl',
        dict(num_classes=7, head_options=dict(bank=dict(cases.BANK, channels=4))),
        ['num_classes=7 in the checkpoint and 5', 'channels=4 in the checkpoint and 8'],
    ),
    ('mcibi', dict(num_classes=7), ['num_classes=7 in the checkpoint and 5']),
    ('mcibi', dict(head_options=dict(channels=6)), ['channels=6 in the checkpoint and 8']),
)


@pytest.mark.parametrize(('name', 'other', 'words'), OTHER_SIZES)
def test_a_bank_of_another_size(name, other, words, tmp_path, log):
    """PyTorch's load raises, mmengine's logs; either says which sizes and what to do."""
    theirs = cases.build(name, seed=1, **other)
    cases.step(theirs) if 'num_classes' not in other else None
    mine = cases.build(name)
    before = {key: value.clone() for key, value in cases.memory(mine).items()}
    torch.save(dict(state_dict=theirs.state_dict()), tmp_path / 'other.pth')
    with pytest.raises(RuntimeError) as error:
        mine.load_state_dict(theirs.state_dict())
    with log.at_level(logging.WARNING):
        load_checkpoint(mine, str(tmp_path / 'other.pth'), logger='current')
    for message in (str(error.value), log.text):
        for word in (*words, 'size mismatch for decode_head.bank', 'set these in the config',
                     'a fresh memory bank starts'):  # fmt: skip
            assert word in message, word
    for key, value in cases.memory(mine).items():  # no part of it was taken
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize('name', MEMORIES)
def test_a_plain_checkpoint_loads_and_a_fresh_bank_starts(name, tmp_path, log):
    plain = cases.build(head=cases.FCN, seed=1)
    torch.save(dict(state_dict=plain.state_dict()), tmp_path / 'fcn.pth')
    model = cases.build(name)
    before = {key: value.clone() for key, value in cases.memory(model).items()}
    with log.at_level(logging.WARNING):
        load_checkpoint(model, str(tmp_path / 'fcn.pth'), logger='current')
    assert log.text.count('a fresh memory bank starts') == 1
    for part in ('backbone', 'auxiliary_head', 'decode_head.conv_seg'):
        mine, theirs = model.get_submodule(part), plain.get_submodule(part)
        for key, value in mine.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[key]), key
    for key, value in cases.memory(model).items():
        assert torch.equal(value, before[key]), key
    losses, _ = cases.step(model)
    assert all(value.isfinite().all() for value in losses.values() if torch.is_tensor(value))


@pytest.mark.parametrize('name', MEMORIES)
def test_a_matching_checkpoint_says_nothing(name, tmp_path, log):
    model = cases.build(name)
    cases.step(model)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'same.pth')
    other = cases.build(name, seed=3)
    with log.at_level(logging.WARNING):
        load_checkpoint(other, str(tmp_path / 'same.pth'), logger='current')
    assert 'fresh memory bank' not in log.text
    for key, value in cases.memory(model).items():
        assert torch.equal(cases.memory(other)[key], value), key


@pytest.mark.parametrize('name', MEMORIES)
@pytest.mark.parametrize('buffers', [True, False])
def test_averaged_bank(name, buffers):
    """EMAHook's copy: without buffers the bank is the model's own, with them the average."""
    model = cases.build(name)
    ema = ExponentialMovingAverage(model, momentum=0.25, update_buffers=buffers)
    key = next(k for k in cases.memory(model) if k.endswith(('distributions', 'features')))
    ema.update_parameters(model)  # the first update copies
    expected = model.state_dict()[key].clone()
    for seed in range(3):
        cases.step(model, seed)
        ema.update_parameters(model)
        own = model.state_dict()[key]
        expected = 0.75 * expected + 0.25 * own if buffers else own
        torch.testing.assert_close(ema.module.state_dict()[key], expected, rtol=0, atol=1e-6)
    images, _ = cases.batch()
    assert ema.module.eval().encode_decode(images, [dict(img_shape=cases.SIZE)]).isfinite().all()
