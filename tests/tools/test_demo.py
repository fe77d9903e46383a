"""tools/demo.py: its commands, its figure, and all of it in a few iterations."""

import importlib.util
import os
import re
import sys
import time

import numpy as np
import pytest
from PIL import Image

from mmseg_cmdl.datasets import SyntheticScenesDataset
from tests.paths import PACKAGE, TOOLS, child_environment

INSTALLED = (PACKAGE / '.mim').is_dir()


@pytest.fixture(scope='module')
def demo():
    spec = importlib.util.spec_from_file_location('demo_tool', TOOLS / 'demo.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(('arguments', 'message'), [
    (['--iters', '0'], '--iters must be at least 1'),
    (['--samples', '3', '100'], r'--samples must be in 0\.\.99'),
])  # fmt: skip
def test_wrong_arguments_are_refused(demo, arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['demo.py', *arguments])
    with pytest.raises(SystemExit):
        demo.parse_args()
    assert re.search(message, capsys.readouterr().err)


def fake_mim(folder, monkeypatch, script):
    """Put a `mim` of that script where the demo looks for it: beside the interpreter."""
    (folder / 'mim').write_text('#!/bin/sh\n' + script)
    (folder / 'mim').chmod(0o755)
    monkeypatch.setattr(sys, 'executable', str(folder / 'python'))


def test_progress_comes_from_the_log(demo, tmp_path, monkeypatch, capsys):
    line = 'Iter(train) [ 20/400]  lr: 0.2  eta: 0:01:05  time: 0.2  loss: 1.2345  aux.loss: 0.5'
    fake_mim(tmp_path, monkeypatch, f'echo start; echo "{line}"; echo "$@"')
    demo.Jobs().mim('train', 'mmseg_cmdl', 'x.py', '--gpus', 0, log=tmp_path / 'log', label='X')
    out = capsys.readouterr().out
    assert 'X 20/400, loss 1.2345, 0:01:05 left' in out
    assert re.search(r'X: done in \d+ s', out.split('\r')[-1])
    assert (tmp_path / 'log').read_text().splitlines() == [
        'start', line, 'train mmseg_cmdl x.py --gpus 0'
    ]  # fmt: skip


def test_a_failed_command_shows_its_end_and_where_the_rest_is(demo, tmp_path, monkeypatch, capsys):
    fake_mim(tmp_path, monkeypatch, 'seq 1 40; echo went wrong >&2; exit 3')
    with pytest.raises(SystemExit, match=rf'mim train x" failed; .* in {tmp_path}/log$'):
        demo.Jobs().mim('train', 'x', log=tmp_path / 'log', label='training X')
    shown = capsys.readouterr().err.splitlines()
    assert shown == ['', *map(str, range(17, 41)), 'went wrong']


def test_jobs_run_side_by_side(demo, tmp_path, monkeypatch):
    """Each waits for a file that the other one makes."""
    wait = 'touch {0}/$1; for i in $(seq 200); do test -f {0}/$2 && exit 0; sleep 0.1; done; exit 1'
    fake_mim(tmp_path, monkeypatch, wait.format(tmp_path))
    words = dict(a=('first', 'second'), b=('second', 'first'))

    def job(name, jobs):
        jobs.mim(*words[name], log=tmp_path / f'{name}.log', label=name)
        return name * 2

    assert demo.run_side_by_side(job, words) == dict(a='aa', b='bb')


def test_a_failure_stops_the_other_job(demo, tmp_path, monkeypatch):
    script = f'test $1 = bad && exit 3; echo $$ > {tmp_path}/pid; sleep 600 & wait'
    fake_mim(tmp_path, monkeypatch, script)

    def job(name, jobs):
        while name == 'bad' and not (tmp_path / 'pid').is_file():
            time.sleep(0.05)
        jobs.mim(name, log=tmp_path / f'{name}.log', label=name)
        jobs.mim('next', log=tmp_path / f'{name}.log', label=name)

    start = time.time()
    with pytest.raises(SystemExit, match='mim bad" failed'):
        demo.run_side_by_side(job, ['long', 'bad'])
    assert time.time() - start < 60  # it did not wait for the other
    assert 'next' not in (tmp_path / 'long.log').read_text()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / 'pid').read_text()), 0)


def test_figure_shows_each_map_in_its_column(demo, tmp_path):
    dataset = SyntheticScenesDataset(length=1, pipeline=[])
    palette = np.array(dataset.metainfo['palette'])
    truth = np.full((128, 128), 2)
    truth[:64] = 255
    image = np.full((128, 128, 3), 77, np.uint8)
    fcn = dict(image=image, truth=truth, prediction=np.full((128, 128), 3))
    mdrl = dict(fcn, prediction=np.full((128, 128), 4), classes=np.full((16, 16), 5),
                distributions=np.full((16, 16), 4))  # fmt: skip
    demo.draw(tmp_path / 'x.png', {'FCN': [fcn] * 2, 'MDRL-FCN': [mdrl] * 2}, dataset, 9,
              {'FCN': 12.3, 'MDRL-FCN': 45.6})  # fmt: skip
    picture = np.asarray(Image.open(tmp_path / 'x.png').convert('RGB')).astype(int)
    fifth = picture.shape[1] / 5
    expected = [(77, 77, 77), palette[2], palette[3], palette[4], palette[5]]
    for column, colour in enumerate(expected):
        x = round((column + 0.5) * fifth)
        # the lower halves: ground truth there is known
        rows = np.flatnonzero((abs(picture[:, x] - colour) <= 1).all(-1))
        assert len(rows) >= 2 * 60 * (2 if column in (0, 4) else 1), (column, colour)
    # where the ground truth is ignored, neither map nor predictions say anything
    for column in (1, 2, 3):
        x = round((column + 0.5) * fifth)
        runs = (picture[:, x] == 255).all(-1)
        assert runs.sum() > 2 * 60


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason='mim needs an ordinary install')
def test_a_few_iterations_end_in_a_table_and_a_figure(tmp_path):
    import subprocess

    done = subprocess.run(
        [sys.executable, TOOLS / 'demo.py', '--iters', '2', '--samples', '0', '5'],
        cwd=tmp_path, env=child_environment(), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r'\| ((?:MDRL-)?FCN)' + r' +\| +([\d.]+)' * 3, done.stdout)
    assert [row[0] for row in rows] == ['FCN', 'MDRL-FCN']
    assert all(0 < float(value) < 100 for row in rows for value in row[1:])
    with Image.open(tmp_path / 'work_dirs' / 'demo' / 'demo.png') as picture:
        assert picture.width == 1210  # 11 inches at 110 dpi
