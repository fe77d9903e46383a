"""`make` and .ci/run: what they say, where they run and which status they end in."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.paths import ROOT

pytestmark = [
    pytest.mark.skipif(not (ROOT / '.ci').is_dir(), reason='no source tree around the tests'),
    pytest.mark.skipif(not (shutil.which('make') and shutil.which('git')), reason='no make or git'),
]
SCORES = {
    'FCN': dict(mIoU=45.349, mAcc=60.0, aAcc=70.0),
    'MCIBI-NLHead': dict(mIoU=54.6, mAcc=65.5, aAcc=75.5),
}
TABLE = '| model | mIoU |\n| FCN | 45.35 |\n| MCIBI-NLHead | 54.60 |\n'


def run(*command, cwd=ROOT, **variables):
    dropped = ['MAKEFLAGS', 'MAKELEVEL', 'MFLAGS']  # of the make that runs the tests
    dropped += ['PYTHON', 'VENV', 'FAMILY', 'DEMO_ARGS', 'PYTEST_ARGS']
    environment = {key: value for key, value in os.environ.items() if key not in dropped}
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, env={**environment, **variables},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
    )  # fmt: skip


# ------------------------------------------------------------------------------------ make


def test_make_alone_lists_the_commands():
    done = run('make', '--no-print-directory')
    assert done.returncode == 0
    listed = [line.split()[0] for line in done.stdout.splitlines()]
    assert listed[:4] == ['help', 'install', 'demo', 'test']
    assert all(len(line.split(maxsplit=1)) == 2 for line in done.stdout.splitlines())


@pytest.mark.parametrize('target', ['demo', 'test', 'lint'])
def test_without_a_python_make_says_what_to_do(target):
    done = run('make', target, 'PYTHON=')
    assert done.returncode == 2
    assert done.stdout.startswith(
        'error: no Python 3.11, 3.12 or 3.13 with venv was found; install'
    )


def test_another_family_is_refused():
    done = run('make', 'demo', 'FAMILY=detectron')
    assert done.returncode == 2
    assert 'FAMILY must be openmmlab or onedl, not detectron' in done.stdout


@pytest.mark.parametrize(('target', 'kind'), [
    ('demo', 'demo'), ('test', 'dev'), ('docs', 'docs'), ('lint', 'dev'),
])  # fmt: skip
def test_each_command_installs_what_it_needs(target, kind):
    """And no more; VENV and PIP_ARGS get there in one piece."""
    done = run('make', '-n', target, 'PYTHON=python3', 'VENV=a b', 'PIP_ARGS=-f "c d"')
    assert done.returncode == 0, done.stdout
    line = next(line for line in done.stdout.splitlines() if 'requirements/install.py' in line)
    assert f'requirements/install.py "a b" {kind} --family openmmlab' in line
    assert line.endswith('-- -f "c d"')
    assert ('--requirements-only' in line) == (target in ('docs', 'lint'))


def test_what_would_slow_or_mislead_python_is_taken_away():
    done = run('make', '-n', 'demo', 'PYTHON=python3')
    for name in ('PYTHONPATH', 'PYTHONHOME', 'PYTHONDONTWRITEBYTECODE'):
        assert done.stdout.count(f'-u {name}') == 2


# ---------------------------------------------------------------------------------- .ci/run


@pytest.fixture
def checkout(tmp_path):
    """A git repository with .ci/run, files that git ignores, and what a demo would leave."""
    folder = tmp_path / 'a checkout'
    folder.mkdir()
    shutil.copytree(ROOT / '.ci', folder / '.ci')
    (folder / '.gitignore').write_text('data/\n')
    (folder / 'data').mkdir()
    (folder / 'data' / 'of_an_earlier_demo').touch()
    (folder / 'not yet added').touch()
    (folder / 'scores.json').write_text(json.dumps(SCORES))
    (folder / 'table.txt').write_text(TABLE)
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    Image.fromarray(noise).save(folder / 'demo.png')
    run('git', 'init', '-q', cwd=folder)
    run('git', 'add', '.ci', '.gitignore', cwd=folder)
    return folder


def run_ci(checkout, *, demo=0, docs=0, lint=0, test=0, **variables):
    """.ci/run with a `make` that tells what it was asked for, and leaves what a demo leaves."""
    programs = checkout.parent / 'programs'
    programs.mkdir(exist_ok=True)
    (programs / 'make').write_text(
        '#!/bin/sh\n'
        'echo "told: $*"; echo "home: $(ls -A "$HOME" | wc -l)"\n'
        'echo "files: $(ls -A | tr "\\n" ",")"; touch "$HOME/left"\n'
        'echo "set: ${XDG_CACHE_HOME}${MPLCONFIGDIR}${TORCH_HOME}${PIP_CACHE_DIR}${PYTHONPATH}"\n'
        'echo "wheels: $PIP_FIND_LINKS"\n'
        'if [ "$1" = demo ]; then\n'
        'mkdir -p .venv/bin work_dirs/demo\n'
        f'printf "#!/bin/sh\\nexec \'{sys.executable}\' \\"\\$@\\"" > .venv/bin/python\n'
        'chmod +x .venv/bin/python\n'
        'cp scores.json demo.png work_dirs/demo; cat table.txt\n'
        f'exit {demo}; fi\n'
        f'if [ "$1" = docs ]; then exit {docs}; fi\n'
        f'if [ "$1" = lint ]; then exit {lint}; fi\n'
        'echo "===== 1 failed, 3 passed in 0.10s ====="; echo "make: *** Error 1"\n'
        f'exit {test}\n'
    )
    (programs / 'make').chmod(0o755)
    return run(
        'bash', checkout / '.ci' / 'run',
        cwd=checkout.parent, PATH=f'{programs}:{os.environ["PATH"]}', **variables,
    )  # fmt: skip


def lines(done, key):
    return [line[len(key) + 2 :] for line in done.stdout.splitlines() if line.startswith(key + ':')]


def test_all_commands_run_in_an_empty_home_and_a_clean_copy(checkout):
    noise = dict.fromkeys(['XDG_CACHE_HOME', 'MPLCONFIGDIR', 'TORCH_HOME', 'PYTHONPATH'], 'x')
    done = run_ci(checkout, PIP_FIND_LINKS='/wheels', DEMO_ARGS='--iters 3', **noise)
    assert done.returncode == 0, done.stdout
    assert lines(done, 'told') == [
        'demo DEMO_ARGS=--iters 3', 'docs', 'lint', 'test PYTEST_ARGS=--color=no',
    ]  # fmt: skip
    assert lines(done, 'home') == ['0', '1', '1', '1']
    assert lines(done, 'set') == [''] * 4
    assert lines(done, 'wheels') == ['/wheels'] * 4
    first = lines(done, 'files')[0].split(',')
    assert {'.ci', 'not yet added', 'table.txt'} <= set(first)
    assert 'data' not in first
    assert not (checkout / 'work_dirs').exists()


def test_failed_tests_end_in_their_status_and_in_the_closing_line_of_pytest(checkout):
    done = run_ci(checkout, test=2)
    assert done.returncode == 2
    assert done.stdout.splitlines()[-1] == '===== 1 failed, 3 passed in 0.10s ====='


def test_a_failed_demo_ends_in_its_status_without_tests(checkout):
    done = run_ci(checkout, demo=3)
    assert done.returncode == 3
    assert 'make demo: exit status 3' in done.stdout
    assert len(lines(done, 'told')) == 1


@pytest.mark.parametrize('command', ['docs', 'lint'])
def test_pages_that_do_not_build_and_types_that_are_wrong_fail(checkout, command):
    done = run_ci(checkout, **{command: 2})
    assert done.returncode == 1
    assert f'make {command} failed' in done.stdout
    assert lines(done, 'told')[-1] == command


@pytest.mark.parametrize(('change', 'message'), [
    ('nan', 'mAcc of FCN is nan'),
    ('zero', 'mAcc of FCN is 0, no percentage above 0'),
    ('one', 'scores of 1 models'),
    ('table', 'no row of the table has mIoU 45.35 of FCN'),
    ('blank', 'a quarter of the lower half of .*demo.png is blank'),
    ('small', 'demo.png has only 300x150 pixels'),
    ('missing', 'the demo has left no .*demo.png'),
])  # fmt: skip
def test_a_demo_without_a_result_fails(checkout, change, message):
    scores, picture = dict(SCORES), np.asarray(Image.open(checkout / 'demo.png')).copy()
    if change in ('nan', 'zero'):
        scores['FCN'] = dict(SCORES['FCN'], mAcc=float('nan') if change == 'nan' else 0)
    elif change == 'one':
        del scores['FCN']
    elif change == 'table':
        (checkout / 'table.txt').write_text(TABLE.replace('| FCN | 45.35 |', '| FCN | 44.35 |'))
    elif change == 'blank':
        picture[150:, 200:] = 255
    elif change == 'small':
        picture = picture[:150, :300]
    (checkout / 'scores.json').write_text(json.dumps(scores))
    Image.fromarray(picture).save(checkout / 'demo.png')
    if change == 'missing':
        (checkout / 'demo.png').unlink()
    done = run_ci(checkout)
    assert done.returncode == 1
    assert len(lines(done, 'told')) == 1
    assert re.search(message, done.stdout), done.stdout
