"""One global batch gives one training, in 1, 2, 3 and 4 processes, through mmengine's DDP."""

import os
import subprocess

import pytest
import torch
from mmengine.config import Config

from tests import tiny
from tests.distributed.launch import results_of_ranks
from tests.guarantees import cases, jobs, ranks
from tests.paths import TOOLS, launcher_environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not torch.distributed.is_available() or os.name != 'posix', reason='needs gloo and fork'
    ),
]
WORLDS = [2, 3, 4]
# What `make test` runs; all ranks of all worlds train 20 steps for each name.
CORE = [
    *cases.METHODS, 'mdrl_paper', 'mdrl_pixel_gumbel', 'mcibi_aspp', 'car_released', 'mdrl_float32',
    'mdrl_reload', 'mcibi_reload',
]  # fmt: skip


def scenarios(chosen=lambda name: True):
    names = cases.shared([*CORE, *ranks.ON_CUDA], filter(chosen, ranks.SCENARIOS))
    return pytest.mark.parametrize('name', names)


# At most, in a step: one for each of three Sinkhorn iterations, one for the sums of an update, two
# for each loss, and one. MCIBI's update is one, and so is that of MCIBI++.
COLLECTIVES = {'mdrl': (3 + 1) + 2 * 2 + 1, 'mcibi': 1}
ATOL = {torch.float64: 1e-10, torch.float32: 1e-5}


@pytest.fixture(scope='module')
def results(tmp_path_factory, request):
    """World size -> list of every rank's results, of the scenarios that tests were asked for."""
    asked = {
        item.callspec.params['name'] for item in request.session.items
        if item.path == request.path and 'results' in item.fixturenames
    }  # fmt: skip
    return results_of_ranks(
        tmp_path_factory.mktemp('ranks'), 'tests.guarantees.ranks', *sorted(asked),
        worlds=ranks.SHARES, timeout=3000,
    )  # fmt: skip


def _close(got, expected, atol, name):
    # relative where a number is above 1
    scale = max(1.0, expected.abs().max().item())
    difference = (got - expected).abs().max().item() / scale
    assert difference <= atol, f'{name}: {difference:.2g}'


def _atol(name):
    return ATOL[torch.float32 if name.endswith('float32') else torch.float64]


@pytest.mark.parametrize('world', WORLDS)
@scenarios()
def test_twenty_steps_are_those_of_one_process(results, name, world):
    """Banks, gradients, weights, and losses: global ones as they are, the host's on average."""
    one, many = results[1][0][name], [rank[name] for rank in results[world]]
    atol = _atol(name)
    for step in range(len(one['bank'])):
        for rank in many:
            for key, value in one['bank'][step].items():
                if value.is_floating_point():
                    _close(rank['bank'][step][key], value, atol, f'step {step}: {key}')
                else:
                    assert torch.equal(rank['bank'][step][key], value), f'step {step}: {key}'
        for key, value in one['losses'][step].items():
            if 'acc_seg' in key:  # the host's percentage of a rank's own pixels
                continue
            got = [rank['losses'][step][key] for rank in many]
            # `loss` and the cross entropy are a rank's share here; all else is of the whole batch
            if key == 'loss' or (key.endswith('loss_ce') and 'memory' not in key):
                got = [sum(got) / world]
            for x in got:
                _close(x, value, atol, f'step {step}: {key}')
    for grads in zip(one['grads'], *(rank['grads'] for rank in many)):
        for key, expected in grads[0].items():
            for got in grads[1:]:
                _close(got[key], expected, atol, key)
    for rank in many:
        for key, expected in one['weights'].items():
            _close(rank['weights'][key], expected, atol, key)
    # these are trainings: they get better, by more than the tolerances by orders of magnitude
    totals = torch.stack([loss['loss'] for loss in one['losses']])
    assert totals.isfinite().all()
    assert totals[-5:].mean() < totals[:5].mean() - 1e-2


@pytest.mark.parametrize('world', WORLDS)
@scenarios(lambda name: name.startswith('m'))
def test_banks_are_equal_to_the_bit_on_all_ranks_after_every_step(results, name, world):
    first, *others = (rank[name]['bank'] for rank in results[world])
    moved = 0
    for step, bank in enumerate(first):
        assert bank
        for key, value in bank.items():
            assert all(torch.equal(other[step][key], value) for other in others), (step, key)
            moved += step > 0 and not torch.equal(value, first[step - 1][key])
    assert moved >= 2 * (len(first) - 1)  # the vectors, and the number of updates


@pytest.mark.parametrize('world', WORLDS)
@scenarios(lambda name: name.startswith('mdrl') and 'float32' not in name)
def test_pixels_are_assigned_alike(results, name, world):
    """Every pixel of the batch goes to the same distribution."""
    one, many = results[1][0][name]['chosen'], [rank[name]['chosen'] for rank in results[world]]
    assert len(one) == len(results[1][0][name]['bank'])
    labelled = 0
    for step, expected in enumerate(one):
        got = torch.cat([rank[step] for rank in many])
        assert got.shape == expected.shape
        assert torch.equal(got, expected), step
        labelled += len(expected.unique())
    assert labelled > len(one)  # not all to one


@pytest.mark.parametrize('world', WORLDS)
@scenarios()
def test_collectives_are_equal_and_constant(results, name, world):
    """On every rank the same, in kind, size and order; at every step but the first use as well."""
    logs = [rank[name]['log'] for rank in results[world]]
    assert all(log == logs[0] for log in logs)
    first, *others = logs[0]
    if name.endswith('reload'):  # a load is followed by a first use
        assert others.pop(ranks.RELOADED - 1) == first
    broadcasts = [call for call in first if call[0] == 'broadcast']
    assert all(log == others[0] for log in others)
    assert first == broadcasts + others[0]
    assert not any(call == 'broadcast' for call, _ in others[0])
    assert len(broadcasts) == len(results[1][0][name]['bank'][0])
    if not name.startswith(('dgcw', 'caa')) and 'SyncBN' not in name:
        most = next((most for start, most in COLLECTIVES.items() if name.startswith(start)), 12)
        assert 0 < len(others[0]) <= most
    assert not any(results[1][0][name]['log'])  # one process asks nobody


@pytest.mark.parametrize('world', WORLDS)
@scenarios()
def test_prediction_on_one_rank_alone_needs_nobody(results, name, world):
    """Of a model that has never been trained, and of one that has."""
    assert all(rank[name]['log_of_predictions'] == [] for rank in results[world])


def test_the_batch_is_as_uneven_as_promised():
    for step in range(ranks.STEPS):
        labels = ranks.labels_of(step)
        assert (labels[1] == 255).all()
        assert [bool((x == 4).any()) for x in labels] == [False] * 5 + [True]
        counted = (labels != 255).flatten(1).sum(1)
        assert len(set(counted.tolist())) > 3
    assert {sum(share) for share in ranks.SHARES.values()} == {ranks.IMAGES}
    assert cases.METHODS


# ---- through the launcher and the Runner ----


def write_job(path, name, data, gpus):
    """Four iterations over all four images, which `gpus` processes share equally."""
    path.parent.mkdir()
    base = tiny.write_config(path.parent / 'tiny.py', data)
    jobs.write_config(path, base, name, 4, 4, dropout=0.0, norm='GN')
    cfg = Config.fromfile(path)
    cfg.train_dataloader.batch_size = 4 // gpus
    # a flip is drawn by each process for itself
    pipeline = cfg.train_dataloader.dataset.pipeline
    cfg.train_dataloader.dataset.pipeline = [x for x in pipeline if x['type'] != 'RandomFlip']
    jobs.dump(cfg, path)
    return path


@pytest.mark.parametrize('name', cases.shared(['mdrl'], cases.METHODS))
def test_dist_train_with_two_processes(name, tiny_data, tmp_path):
    """`dist_train.sh CONFIG 2` on CPUs leaves the checkpoint that one process leaves."""
    environment = dict(launcher_environment(), CUDA_VISIBLE_DEVICES='')
    saved = []
    for gpus in (1, 2):
        config = write_job(tmp_path / str(gpus) / 'job.py', name, tiny_data, gpus)
        command = ['bash', str(TOOLS / 'dist_train.sh'), config.name, str(gpus)]
        done = subprocess.run(
            [*command, '--work-dir', 'work'], cwd=config.parent, env=environment, text=True,
            capture_output=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert f'GPU number: {gpus}' in done.stdout + done.stderr
        saved.append(torch.load(config.parent / 'work' / 'iter_4.pth'))
    one, two = (checkpoint['state_dict'] for checkpoint in saved)
    assert one.keys() == two.keys()
    for key, value in one.items():
        _close(two[key].double(), value.double(), 1e-5, key)
    # mmengine logs rank 0's losses; those of this package are of the whole batch on each rank
    one, two = (checkpoint['message_hub']['log_scalars'] for checkpoint in saved)
    names = ('.loss_cl', '.loss_cg', '.loss_pp', 'memory', 'car.')
    ours = [key for key in one if any(part in key for part in names)]
    assert ours or name in ('dgcw', 'mcibipp')  # which have none
    for key in ours:
        got, expected = (torch.tensor(x[key].data[0]) for x in (two, one))
        _close(got, expected, 1e-5, key)
