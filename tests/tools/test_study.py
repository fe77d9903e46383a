"""tools/study.py: real jobs once, and the order, stops and failures of jobs with a stand-in."""

import json
import os
import signal
import subprocess
import sys

import pytest

from mmseg_cmdl.study import jobs, plan
from mmseg_cmdl.study.recorder import is_locked, read_result, unpack_areas
from tests.doors import wait_until
from tests.paths import TOOLS, child_environment, load_script

SCRIPT = TOOLS / 'study.py'
# Takes the arguments of tools/train.py and leaves a result at once, but for the arm `bad`; an arm
# `slow` waits for a file.
STAND_IN = """
import base64, json, os, pathlib, struct, sys, time, zlib
config, folder, seed = sys.argv[1], pathlib.Path(sys.argv[3]), int(sys.argv[7].split('=')[1])
assert sys.argv[2] == '--work-dir' and sys.argv[4:7] == ['--resume', 'auto', '--cfg-options']
study, arm = folder.parents[2], folder.parent.name
folder.mkdir(parents=True, exist_ok=True)
with open(study / 'started', 'a') as file:
    print(arm, seed, os.environ['OMP_NUM_THREADS'], file=file)
if arm == 'bad':
    print('something went wrong')
    raise SystemExit('error: no such thing')
while arm == 'slow' and not (study / 'go').exists():
    time.sleep(0.05)
(folder / 'iter_4.pth').touch()
(folder / 'last_checkpoint').touch()
plan = study / 'plan.json'
config = json.loads(plan.read_text())['arms'][arm]['fingerprint'] if plan.exists() else ''
packed = base64.b64encode(zlib.compress(struct.pack('<3i', 50, 60, 70))).decode()
areas = dict(images=1, images_per_unit=1, shape=[1, 3, 1], zlib_int32_base64=packed)
found = dict(
    format=1, arm=arm, seed=seed, state='finished', config=config, iterations=4, mIoU=50.0 + seed,
    mAcc=60.0, aAcc=70.0, first_not_finite=None, classes=['a'], IoU=[50.0 + seed], Acc=[60.0],
    validations=[[4, 50.0, 60.0, 70.0]], loss=[], parameters=10, seconds=30.0, peak_mib=1.0,
    peak_gpu_mib=None, iteration_seconds=1.0, iteration_cpu_seconds=1.0, device='x', threads=1,
    versions={}, commit=None, areas=areas)
path = study / 'results' / f'{arm}_seed{seed}.json'
path.parent.mkdir(exist_ok=True)
path.write_text(json.dumps(found))
"""


@pytest.fixture
def tool(tmp_path, monkeypatch):
    module = load_script(SCRIPT)
    stand_in = tmp_path / 'stand_in.py'
    stand_in.write_text(STAND_IN)
    monkeypatch.setattr(module, 'TRAIN', stand_in)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    return module


def started(folder):
    lines = (folder / 'started').read_text().splitlines()
    return [' '.join(line.split()[:2]) for line in lines]


def results(folder):
    return {path.stem: read_result(path) for path in (folder / 'results').glob('*.json')}


def test_all_arms_of_a_seed_first_and_nothing_twice(tool, tiny_config, tmp_path, capsys):
    folder = tmp_path / 'study'
    command = [str(tiny_config), '--methods', 'mdrl', 'car', '--work-dir', str(folder)]
    tool.main([*command, '--seeds', '0', '1'])
    order = [f'{arm} {seed}' for seed in (0, 1) for arm in ('fcn', 'mdrl', 'car')]
    assert started(folder) == order
    out = capsys.readouterr().out
    assert 'mdrl, seed 1: mIoU 51.00, 30 s' in out
    assert '| mdrl ' in out  # the report
    for job in ('fcn/seed0', 'car/seed1'):
        assert not list((folder / 'jobs' / job).glob('*.pth'))
    threads = {line.split()[2] for line in (folder / 'started').read_text().splitlines()}
    assert threads == {str(len(os.sched_getaffinity(0)))}

    # extended: one arm and one seed more
    tool.main([*command, '--methods', 'mdrl', 'car', 'mcibi', '--seeds', '0', '1', '2'])
    assert started(folder)[6:] == [
        'mcibi 0',
        'mcibi 1',
        *(f'{arm} 2' for arm in ('fcn', 'mdrl', 'car', 'mcibi')),
    ]
    study = json.loads((folder / 'study.json').read_text())
    assert [arm['mIoU']['count'] for arm in study['arms']] == [3, 3, 3, 3]
    capsys.readouterr()
    before = (folder / 'plan.json').read_text()
    tool.main([*command, '--arm', 'late: mcibi', '--dry-run', '--seeds', '0', '--jobs', '1'])
    assert 'new      late, seed 0' in capsys.readouterr().out
    assert (folder / 'plan.json').read_text() == before  # nor is there an arm that never trained
    tool.main([*command, '--dry-run', '--seeds', '0', '3', '--jobs', '2'])
    out = capsys.readouterr().out
    assert 'done     mdrl, seed 0' in out
    assert 'new      mdrl, seed 3' in out
    # 45 s: three jobs of 30 s, two at a time
    assert 'About 1 min with --jobs 2, from the jobs that are done.' in out

    # a folder of results alone is gone on with elsewhere
    tool.main(['--report', str(folder)])
    assert '| mcibi ' in capsys.readouterr().out


def test_an_estimate_before_any_job_is_done(tool, tiny_config, tmp_path, capsys):
    """The stand-in says 30 s for 4 iterations of 1 s: 26 s besides, at each of 2 validations."""
    command = [str(tiny_config), '--methods', 'car', '--dry-run', '--seeds', '0', '1', '2']
    command += ['--iters', '400', '--cfg-options', 'train_cfg.val_interval=200']
    tool.main([*command, '--work-dir', str(tmp_path / 'study')])
    out = capsys.readouterr().out
    assert out.count('new ') == 6
    # 6 jobs of 400 + 2 * 26 s
    assert 'About 45 min with --jobs 1, from a few iterations of fcn just now.' in out
    assert not (tmp_path / 'study').exists()

    tool.TRAIN.write_text('raise SystemExit("error: no data")')
    tool.main([*command, '--work-dir', str(tmp_path / 'study')])
    assert (
        'No estimate: no job is done yet, and fcn fails in its first iterations: error: no data.'
    ) in capsys.readouterr().out


def test_a_failing_arm_stops_no_other_and_is_tried_again(tool, tiny_config, tmp_path, capsys):
    folder = tmp_path / 'study'
    command = [str(tiny_config), '--arm', 'bad: mdrl', '--arm', 'good: car', '--seeds', '0', '1']
    command += ['--work-dir', str(folder), '--jobs', '2', '--keep-checkpoints']
    with pytest.raises(SystemExit) as code:
        tool.main(command)
    assert code.value.code == 1
    out = capsys.readouterr().out
    assert 'bad, seed 1: FAILED with exit code 1; its last lines' in out
    assert '    something went wrong\n    error: no such thing' in out
    assert 'failed: bad, seed 0; bad, seed 1' in out
    assert '| bad  ' in out
    found = results(folder)
    assert found['good_seed1']['mIoU'] == 51.0
    assert found['bad_seed0']['state'] == 'failed'
    assert found['bad_seed0']['error'] == 'error: no such thing'
    assert (folder / 'jobs' / 'good' / 'seed0' / 'iter_4.pth').is_file()
    with pytest.raises(SystemExit):
        tool.main(command)
    assert sorted(started(folder)[6:]) == ['bad 0', 'bad 1']


def test_a_job_that_another_process_runs_is_left_to_it(tool, tiny_config, tmp_path, capsys):
    folder = tmp_path / 'study'
    command = [str(tiny_config), '--seeds', '0', '--work-dir', str(folder)]
    job = folder / 'jobs' / 'fcn' / 'seed0'
    job.mkdir(parents=True)
    hold = (
        'import fcntl, sys, time; file = open(sys.argv[1], "w")\n'
        'fcntl.flock(file, fcntl.LOCK_EX); print("held", flush=True); time.sleep(600)'
    )
    with subprocess.Popen(
        [sys.executable, '-c', hold, str(job / 'lock')],
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        try:
            assert holder.stdout.readline() == 'held\n'
            assert is_locked(job)
            tool.main([*command, '--dry-run'])
            assert 'running  fcn, seed 0' in capsys.readouterr().out
            tool.main([*command, '--print-commands'])
            assert capsys.readouterr().out.strip() == ''
        finally:
            holder.kill()
    assert not is_locked(job)
    tool.main(command)
    assert started(folder) == ['fcn 0']


def test_another_config_is_refused(tool, tiny_config, tmp_path):
    command = [str(tiny_config), '--work-dir', str(tmp_path / 'study')]
    tool.main([*command, '--seeds', '0'])
    for what in ([], ['--dry-run']):
        with pytest.raises(SystemExit) as error:
            tool.main([*command, *what, '--cfg-options', 'model.decode_head.channels=8'])
        assert 'model.decode_head.channels: 16 there, 8 now' in str(error.value)
        with pytest.raises(SystemExit, match=r'train_cfg\.max_iters: 4 there, 2 now'):
            tool.main([*command, *what, '--iters', '2'])


def test_equal_seeds_are_refused(tool, tiny_config, capsys):
    with pytest.raises(SystemExit):
        tool.main([str(tiny_config), '--seeds', '1', '1'])
    assert '--seeds must differ' in capsys.readouterr().err


def test_slurm_and_printed_commands(tool, tiny_config, tmp_path, capsys, monkeypatch):
    """A stand-in sbatch runs the tasks of the array one after the other."""
    folder = tmp_path / 'a study'  # with a space
    command = [str(tiny_config), '--methods', 'car', '--seeds', '0', '1', '--jobs', '3']
    command += ['--work-dir', str(folder)]
    tool.main([*command, '--print-commands'])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[3].endswith('--resume auto --cfg-options randomness.seed=1')
    subprocess.run(['bash', '-c', lines[0]], check=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert started(folder) == ['fcn 0']

    with pytest.raises(SystemExit, match='there is no sbatch here'):
        tool.main([*command, '--slurm', 'gpu'])
    sbatch = tmp_path / 'bin' / 'sbatch'
    sbatch.parent.mkdir()
    sbatch.write_text(
        '#!/usr/bin/env bash\necho "$@" > "$(dirname "$0")/arguments"\nscript="${@: -1}"\n'
        'count=$(sed -n "s/^#SBATCH --array=1-\\([0-9]*\\)%.*/\\1/p" "$script")\n'
        'for i in $(seq "$count"); do SLURM_ARRAY_TASK_ID=$i bash "$script" || exit 3; done\n'
    )
    sbatch.chmod(0o755)
    monkeypatch.setenv('PATH', f'{sbatch.parent}:{os.environ["PATH"]}')
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    tool.main([*command, '--slurm', 'gpu', '--slurm-args=--gres=gpu:1 --time=60'])
    assert '3 jobs handed to Slurm' in capsys.readouterr().out
    arguments = (sbatch.parent / 'arguments').read_text()
    assert arguments == f'--gres=gpu:1 --time=60 {folder}/study.sbatch\n'
    script = (folder / 'study.sbatch').read_text()
    assert '#SBATCH --partition=gpu\n' in script
    assert '#SBATCH --array=1-3%3\n' in script
    assert started(folder) == ['fcn 0', 'car 0', 'fcn 1', 'car 1']
    tool.main([*command, '--slurm', 'gpu'])
    assert 'all jobs are done or running' in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_study_goes_on_where_it_was(tiny_config, tmp_path):
    """The study and its job: killed by SIGKILL; what it ends with is that of one never stopped."""

    def command(folder, *more):
        words = [sys.executable, SCRIPT, tiny_config, '--seeds', '3', '--work-dir', folder]
        words += ['--iters', '60', '--precise-bn', '2', *more]
        return [*map(str, words), '--cfg-options', 'default_hooks.checkpoint.interval=5']

    environment = child_environment()
    killed, whole = tmp_path / 'killed', tmp_path / 'whole'
    log = open(tmp_path / 'log', 'w')  # noqa: SIM115
    with subprocess.Popen(command(killed), env=environment, stdout=log, stderr=log) as process:
        job = killed / 'jobs' / 'fcn' / 'seed3'
        wait_until((job / 'last_checkpoint').exists)
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_locked(job), 120)  # its job notices within an iteration
    assert not (killed / 'results' / 'fcn_seed3.json').exists()

    for folder in (killed, whole):
        subprocess.run(command(folder), env=environment, check=True, capture_output=True)
    found, expected = (results(folder)['fcn_seed3'] for folder in (killed, whole))
    assert (found['stops'], expected['stops']) == (1, 0)
    for key in ('mIoU', 'mAcc', 'aAcc', 'IoU', 'as_trained', 'config', 'validations', 'seed'):
        assert found[key] == expected[key], key
    assert found['iterations'] == 60
    areas = unpack_areas(found['areas'])
    assert areas.shape == (2, 3, 3)
    assert areas[:, 2].sum() == 2 * 31 * 32  # labelled pixels of the two images: a row is ignored
    assert found['parameters'] > 10_000
    assert found['peak_mib'] > 10
    assert found['cpu_seconds'] > 0.1
    assert (killed / 'results' / 'fcn_seed3.json').stat().st_size < 10_000
    assert (killed / 'study.html').is_file()


def test_a_job_ends_with_the_study(tool, tiny_config, tmp_path):
    """SIGTERM ends the study and its jobs."""
    folder = tmp_path / 'study'
    arms = plan.resolve(tiny_config, [], ['slow: car'], results=folder / 'results')
    plan.save(folder, arms)
    todo = jobs.jobs_of(arms[1:], [0], folder)
    runner = jobs.Runner(todo, tool.TRAIN, 1)
    signal.signal(signal.SIGALRM, tool.terminate)
    previous = signal.setitimer(signal.ITIMER_REAL, 3.0)
    try:
        with pytest.raises(KeyboardInterrupt):
            runner.run()
    finally:
        signal.setitimer(signal.ITIMER_REAL, *previous)
    (job, process, *_) = next(iter(runner._running.values()))
    assert job.arm == 'slow'
    assert process.returncode == -signal.SIGTERM
    (folder / 'go').touch()
    assert runner.__class__(todo, tool.TRAIN, 1).run() == []
