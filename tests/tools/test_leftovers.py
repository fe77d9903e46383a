"""What tools leave behind when they have ended: no open file, no thread, no stray file."""

import os
import tempfile
import threading

import pytest

from tests.paths import TOOLS, load_script
from tests.tools import mistakes

needs_proc = pytest.mark.skipif(not os.path.isdir('/proc/self/fd'), reason='Linux tells it')


def held():
    """Files of the disk that this process has open, and its threads."""
    files = set()
    for number in os.listdir('/proc/self/fd'):
        try:
            target = os.readlink(f'/proc/self/fd/{number}')
        except OSError:  # that of the listing
            continue
        if target.startswith('/') and not target.startswith(('/dev/', '/proc/')):
            files.add(target)
    return files, set(threading.enumerate())


@needs_proc
def test_no_file_and_no_thread(tmp_path, monkeypatch, capfd):
    """Tools that train, test, read data and draw, one after the other in one process."""
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)
    files = mistakes.make_files(tmp_path)
    temporary = tmp_path / 'temporary'
    temporary.mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(temporary))
    job, trained = str(files / 'mdrl.py'), str(files / 'mdrl.pth')
    car, car_trained = str(files / 'car.py'), str(files / 'car.pth')
    monkeypatch.chdir(tmp_path)
    given = sorted(path.name for path in tmp_path.iterdir())
    before = None
    for round_, out in enumerate(('first', 'second')):
        for tool, arguments in (
            ('train.py', [job, '--work-dir', f'{out}/train']),
            ('test.py', [job, trained, '--work-dir', f'{out}/test', '--out', f'{out}/labels']),
            ('init_memory.py', [job, f'{out}/memory.pth']),
            ('fold_car.py', [car, car_trained, f'{out}/folded.pth']),
            ('analysis/distribution_map.py', [job, trained, '--out', f'{out}/map']),
            ('analysis/compare_predictions.py', [job, trained, '--out', f'{out}/cases']),
        ):
            module = load_script(TOOLS / tool)
            module.main([*arguments, '--cfg-options', 'visualizer.name=' + out]
                        if tool in ('train.py', 'test.py') else arguments)  # fmt: skip
        if round_ == 0:  # what is loaded once and kept, as fonts are, is no leak
            before = held()
    (open_files, threads), (open_before, threads_before) = held(), before
    # mmengine's own log file of each run stays open until its logger goes
    logs = {path for path in open_files if path.endswith('.log')}
    assert open_files - open_before - logs == set()
    assert threads - threads_before == set()
    # PyTorch's own cache, made when its compiler is imported
    left = [path for path in temporary.iterdir() if not path.name.startswith('torchinductor')]
    assert left == []
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted([*given, 'first', 'second'])
