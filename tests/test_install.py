"""requirements/install.py: pip's settings told to uv, and what is made anew when."""

import json
import os
import subprocess
import sys

import pytest

from tests.paths import ROOT, load_script

SCRIPT = ROOT / 'requirements' / 'install.py'
if not SCRIPT.is_file():
    pytest.skip('no source tree around the tests', allow_module_level=True)
install = load_script(SCRIPT)

AS_PIP = '--index-strategy=unsafe-best-match'


# --------------------------------------------------------------------- the settings of pip


@pytest.mark.parametrize(('settings', 'options'), [
    ({'find-links': '/wheels https://a/b'}, ['--find-links=/wheels', '--find-links=https://a/b']),
    ({'index-url': 'https://mirror/simple'}, ['--index-url=https://mirror/simple']),
    ({'extra-index-url': '\nhttps://a\nfile:///b'},
     ['--extra-index-url=https://a', '--extra-index-url=file:///b']),
    ({'constraint': '/etc/constraints.txt'}, ['--constraint=/etc/constraints.txt']),
    ({'cert': '/etc/ca.crt', 'quiet': '1'}, ['--cert=/etc/ca.crt']),
    ({'trusted-host': 'a b:80'}, ['--allow-insecure-host=a', '--allow-insecure-host=b:80']),
    ({'no-index': 'true'}, ['--no-index']),
    ({'no-index': '0', 'pre': 'no', 'index-url': ''}, []),
    ({'only-binary': ':all:', 'no-binary': 'a,b'},
     ['--no-binary=a', '--no-binary=b', '--only-binary=:all:']),
])  # fmt: skip
def test_a_setting_becomes_an_option_of_uv(settings, options):
    assert install.for_uv(settings, []) == ([AS_PIP, *options], {})


def test_the_proxy_and_the_patience_go_into_the_environment():
    _, variables = install.for_uv({'proxy': 'http://p:1', 'retries': '2'}, ['--timeout', '7'])
    assert variables == {
        **dict.fromkeys(['HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY'], 'http://p:1'),
        'UV_HTTP_RETRIES': '2',
        'UV_HTTP_TIMEOUT': '7',
    }


def test_options_of_the_command_line_add_to_the_settings_or_replace_them():
    settings = {'find-links': '/a', 'index-url': 'https://b'}
    words = ['-f', '/c', '-i', 'https://d', '--extra-index-url=https://e', '-q', '--pre']
    assert install.for_uv(settings, words)[0][1:] == [
        '--extra-index-url=https://e',
        '--find-links=/a',
        '--find-links=/c',
        '--index-url=https://d',
        '--prerelease=allow',
    ]


@pytest.mark.parametrize(('settings', 'words', 'named'), [
    ({'require-hashes': '1', 'find-links': '/a'}, [], 'require-hashes'),
    ({'target': '/elsewhere'}, [], 'target'),
    ({}, ['--platform=any'], '--platform=any'),
])  # fmt: skip
def test_a_setting_that_uv_does_not_know_is_never_lost(settings, words, named):
    with pytest.raises(install.NoCounterpart, match=named):
        install.for_uv(settings, words)


def test_settings_are_read_as_pip_reads_them(tmp_path):
    """The environment before [install] before [global]; lists over several lines."""
    pytest.importorskip('pip')
    config = tmp_path / 'pip.conf'
    config.write_text(
        '[global]\nextra-index-url =\n    https://one\n    https://two\ntimeout = 3\n'
        'trusted-host = one\nno_index = false\n[install]\ntrusted-host = two\n[list]\nformat=x\n'
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith('PIP_')}
    environment.update(PIP_CONFIG_FILE=str(config), PIP_DEFAULT_TIMEOUT='9', PIP_FIND_LINKS="it's")
    listing = subprocess.run(
        [sys.executable, '-m', 'pip', 'config', 'list'],
        env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    settings = install.settings_of_pip(listing)
    assert settings['extra-index-url'].split() == ['https://one', 'https://two']
    assert settings['find-links'] == "it's"
    assert settings['timeout'] == '9'
    assert settings['trusted-host'] == 'two'
    assert settings['no-index'] == 'false'
    assert 'format' not in settings
    install.for_uv(settings, [])


# ----------------------------------------------------------------------------- who installs


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """An environment whose Python and uv write down what they are told; `fail` names who fails."""
    place = install.Environment(tmp_path / 'env', ['-f', '/wheels'])
    place.ours = True
    place.python.parent.mkdir(parents=True)
    for name in ('python', 'uv'):
        program = place.python.with_name(name)
        program.write_text(
            '#!/bin/sh\n'
            f'echo "{name} $*" >> {tmp_path}/told\n'
            'case "$*" in *dry-run*backend*) echo " + torch==2.13.0+cpu";;\n'
            f'*dry-run*) echo " + torch==$(cat {tmp_path}/known)";; esac\n'
            f'! grep -qw {name} {tmp_path}/fail || exit 3\n'
            f'case "$*" in *uv==*) ! grep -qw wheel {tmp_path}/fail || exit 1;; esac\n'
            f'case "$*" in *backend*) ! grep -qw index {tmp_path}/fail || exit 2;; esac\n'
        )
        program.chmod(0o755)
    (tmp_path / 'fail').write_text('')
    (tmp_path / 'known').write_text('2.13.0')
    monkeypatch.delenv('UV_TORCH_BACKEND', raising=False)
    return place


def told(folder):
    lines = (folder / 'told').read_text().splitlines()
    return [line for line in lines if 'pip config list' not in line]


def test_uv_installs_with_the_options_of_pip(environment, tmp_path):
    assert environment.install('--reinstall', '-r', 'x.txt')
    (line,) = told(tmp_path)
    assert line.startswith('uv pip install --no-config --python ')
    assert line.endswith('--find-links=/wheels --reinstall -r x.txt')


@pytest.mark.parametrize('missing', [False, True])
def test_pip_installs_where_uv_cannot(environment, tmp_path, missing, capfd):
    """Where uv fails, and where there is none for this machine."""
    (tmp_path / 'fail').write_text('wheel' if missing else 'uv')
    if missing:
        environment.python.with_name('uv').unlink()
    assert environment.install('--torch-backend=auto', '--reinstall', '-r', 'x.txt')
    pip = 'python -m pip install --no-user --no-compile -f /wheels --force-reinstall -r x.txt'
    assert told(tmp_path)[-1] == pip
    said = 'is not to be had here: pip' if missing else 'uv could not install that'
    assert said in capfd.readouterr().out


def test_both_failing_is_told(environment, tmp_path):
    (tmp_path / 'fail').write_text('uv python')
    assert not environment.install('-r', 'x.txt')


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere PyPI has no CUDA')
@pytest.mark.parametrize(('known', 'fail', 'options', 'dry_runs'), [
    ('2.13.0+cpu', '', [], 1),  # pip's settings bring a build: it is taken
    ('2.13.0', '', ['--torch-backend=auto'], 2),
    ('2.13.0', 'index', [], 2),  # PyTorch's own index can't be reached
])  # fmt: skip
def test_torch_without_cuda(environment, tmp_path, known, fail, options, dry_runs, capfd):
    (tmp_path / 'known').write_text(known)
    (tmp_path / 'fail').write_text(fail)
    assert environment.torch_backend() == options
    assert len(told(tmp_path)) == dry_runs
    assert ("can't be reached" in capfd.readouterr().out) == bool(fail)


def test_a_backend_chosen_by_the_user_is_left_to_uv(environment, tmp_path, monkeypatch):
    monkeypatch.setenv('UV_TORCH_BACKEND', 'cu128')
    assert environment.torch_backend() == []
    assert told(tmp_path) == []


def test_a_cache_that_cannot_be_written_goes_into_the_environment(
    environment, tmp_path, monkeypatch
):
    monkeypatch.delenv('UV_CACHE_DIR', raising=False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'caches'))
    assert install.cache_of_uv() == tmp_path / 'caches' / 'uv'
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'fail'))  # a file
    assert install.cache_of_uv() is None
    assert environment.uv()[1]['UV_CACHE_DIR'] == str(environment.folder / '.uv-cache')


# ------------------------------------------------------------------------- what is made when


@pytest.fixture
def installs(environment, tmp_path, monkeypatch):
    """Call install_requirements; returns the lists of requirements that were installed."""
    programs = {p.name: p.read_text() for p in environment.python.parent.iterdir()}
    maker = tmp_path / 'maker'
    copies = ''.join(
        f'cat > "$3/bin/{name}" <<\'EOF\'\n{text}EOF\nchmod +x "$3/bin/{name}"\n'
        for name, text in programs.items()
    )
    maker.write_text(f'#!/bin/sh\nmkdir -p "$3/bin"; touch "$3/pyvenv.cfg"\n{copies}')
    maker.chmod(0o755)
    monkeypatch.setattr(sys, 'executable', str(maker))
    install.shutil.rmtree(environment.folder)

    def run(kind='demo', family='openmmlab'):
        (tmp_path / 'told').write_text('')
        place = install.Environment(environment.folder)
        with place.alone():
            install.install_requirements(place, kind, family)
        lines = [line for line in told(tmp_path) if 'dry-run' not in line]
        return [line.partition(' -r ')[2] for line in lines if ' -r ' in line]

    return run


DEMO = ['requirements.txt -r requirements/demo.txt', 'requirements/no-deps.txt']
DEV = ['requirements.txt -r requirements/dev.txt', 'requirements/no-deps.txt']


def test_the_requirements_are_installed_once(installs, environment):
    assert installs('demo') == DEMO
    (environment.folder / 'kept').touch()
    assert installs('demo') == []
    assert installs('dev') == DEV
    assert installs('dev') == installs('demo') == []
    assert (environment.folder / 'kept').exists()


def test_the_site_needs_what_its_pages_import(installs):
    files = 'requirements.txt -r requirements/dev.txt -r requirements/docs.txt'
    assert installs('docs') == [files, DEV[1]]
    assert installs('docs') == installs('dev') == installs('demo') == []


def test_the_fork_has_other_requirements(installs):
    assert installs('dev', 'onedl') == [
        'requirements/dev.txt',
        'requirements/no-deps.txt -r requirements/onedl.txt',
    ]


@pytest.mark.parametrize('change', ['killed', 'pins', 'python', 'broken'])
def test_it_is_made_anew(installs, environment, change, monkeypatch):
    installs('dev')
    (environment.folder / 'left').mkdir()
    note = json.loads(environment.note.read_text())
    if change == 'killed':
        environment.write_note()
    elif change == 'broken':
        environment.python.unlink()
    else:
        key = dict(pins='requirements', python='python')[change]
        environment.write_note(**{**note, key: 'other'})
    assert installs('dev') == DEV
    assert not (environment.folder / 'left').exists()
    assert json.loads(environment.note.read_text()) == note


def test_an_environment_of_somebody_else_is_filled_but_never_emptied(installs, environment):
    subprocess.run([sys.executable, '-m', 'venv', str(environment.folder)], check=True)
    (environment.folder / 'theirs').mkdir()
    assert installs('demo') == DEMO
    environment.note.write_text(environment.note.read_text().replace('"python": "', '"python": "1'))
    assert installs('demo') == DEMO
    assert installs('demo') == []
    assert (environment.folder / 'theirs').exists()


def test_a_folder_that_is_no_environment_is_refused(installs, environment):
    environment.folder.mkdir()
    (environment.folder / 'thesis.tex').touch()
    with pytest.raises(SystemExit, match='env has files in it and is no virtual environment'):
        installs('demo')
    assert [path.name for path in environment.folder.iterdir()] == ['thesis.tex']


def test_a_folder_that_cannot_be_written_ends_in_one_sentence(tmp_path):
    (tmp_path / 'file').touch()
    place = install.Environment(tmp_path / 'file' / 'env')
    with pytest.raises(SystemExit, match=r'^error: .*/env can not be written .*make VENV='):
        place.alone().__enter__()
