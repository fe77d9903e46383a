"""Make a virtual environment from the pinned requirements and install this package into it.

    python3.11 requirements/install.py .venv demo           what `make demo` needs
    python3.11 requirements/install.py .venv dev            what `make test` and `make lint` need
    python3.11 requirements/install.py .venv docs           what `make docs` needs
    python3.11 requirements/install.py .venv dev --family onedl -- --extra-index-url URL

`make` calls it each time: where nothing has changed, only the package itself is installed anew.
uv does the installing, many times faster than pip, and pip brings it. uv knows nothing of pip's
settings, so they are translated: the environment's (PIP_INDEX_URL), the files' (`pip config`) and
those after `--`. Where uv has no wheel, a setting has no counterpart in uv, or uv fails, pip does
the work itself. Needs nothing but Python's own library.
"""

import argparse
import ast
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UV = 'uv==0.13.9'
# opencv-python needs libGL, which a machine without a desktop has not; this one does not.
HEADLESS = 'opencv-python-headless==5.0.0.93'
# Without dependencies: see the files. onedl-mmsegmentation comes as source, and is built with the
# setuptools that is pinned.
FAMILIES = {
    'openmmlab': (['requirements.txt'], ['requirements/no-deps.txt']),
    'onedl': ([], ['requirements/no-deps.txt', 'requirements/onedl.txt']),
}
# Files of requirements/, and what is there besides when they are installed: dev.txt holds demo.txt.
KINDS = {'demo': ['demo'], 'dev': ['dev'], 'docs': ['dev', 'docs']}
INCLUDED = {'demo': ['demo'], 'dev': ['demo', 'dev'], 'docs': ['demo', 'dev', 'docs']}

# Options of pip that uv has too, all but one under the same name.
LISTS = (
    'extra-index-url', 'find-links', 'constraint', 'trusted-host', 'no-binary', 'only-binary',
)  # fmt: skip
VALUES = ('index-url', 'cert')
OF_UV = {'trusted-host': 'allow-insecure-host'}
SWITCHES = {
    'no-index': ['--no-index'],
    'pre': ['--prerelease=allow'],
    'no-cache-dir': ['--no-cache'],
}
# Those that uv takes from the environment.
VARIABLES = {
    'proxy': ['HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY'],
    'client-cert': ['SSL_CLIENT_CERT'],
    'timeout': ['UV_HTTP_TIMEOUT'],
    'retries': ['UV_HTTP_RETRIES'],
}
# Those that change nothing of what is installed, or that are pip's own affair.
IGNORED = {
    'cache-dir', 'compile', 'config-file', 'debug', 'disable-pip-version-check', 'exists-action',
    'format', 'log', 'no-color', 'no-compile', 'no-input', 'no-python-version-warning',
    'no-user', 'no-warn-conflicts', 'no-warn-script-location', 'prefer-binary', 'progress-bar',
    'quiet', 'require-virtualenv', 'root-user-action', 'user', 'verbose',
}  # fmt: skip


class NoCounterpart(Exception):
    """A setting of pip that uv has no word for."""


def settings_of_pip(listing):
    """{option: value} from what `pip config list` prints; as in pip, the environment wins."""
    found = {}
    lines = [line.partition('=') for line in listing.splitlines()]
    for section in ('global.', 'install.', ':env:.'):
        for key, _, value in lines:
            if key.startswith(section):
                found[key[len(section) :]] = ast.literal_eval(value)
    if 'default-timeout' in found:
        found['timeout'] = found.pop('default-timeout')
    return found


def options_parser():
    parser = argparse.ArgumentParser(prog='the options of pip', add_help=False)
    short = {'index-url': ['-i'], 'find-links': ['-f'], 'constraint': ['-c']}
    for name in LISTS:
        parser.add_argument(*short.get(name, []), f'--{name}', dest=name, action='append')
    for name in (*VALUES, *VARIABLES):
        parser.add_argument(*short.get(name, []), f'--{name}', dest=name)
    for name in SWITCHES:
        parser.add_argument(f'--{name}', dest=name, action='store_true', default=None)
    return parser


def for_uv(settings, pip_args):
    """Options and environment variables for uv that say what pip's settings and options say.

    Raises:
        NoCounterpart: where uv can't be told.
    """
    given, rest = options_parser().parse_known_args(pip_args)
    for word in rest:
        name = word.lstrip('-').partition('=')[0]
        if name not in IGNORED and not re.fullmatch('-[qv]+', word):
            raise NoCounterpart(word)
    unknown = set(settings) - {*LISTS, *VALUES, *SWITCHES, *VARIABLES, *IGNORED}
    if unknown:
        raise NoCounterpart(', '.join(sorted(unknown)))
    # pip takes the best file of all places, uv by default those of the first place only
    options = ['--index-strategy=unsafe-best-match']
    environment = {}
    for name in LISTS:
        values = settings.get(name, '').split() + (getattr(given, name) or [])
        if name.endswith('binary'):
            values = [value for some in values for value in some.split(',')]
        options += [f'--{OF_UV.get(name, name)}={value}' for value in values]
    for name in VALUES:
        value = getattr(given, name) or settings.get(name)
        if value:
            options.append(f'--{name}={value}')
    for name, words in SWITCHES.items():
        value = str(settings.get(name, '')).lower()
        if getattr(given, name) or value in ('1', 'true', 'yes', 'on', 't', 'y'):
            options += words
    for name, variables in VARIABLES.items():
        value = getattr(given, name) or settings.get(name)
        if value:
            environment.update(dict.fromkeys(variables, str(value)))
    return options, environment


def is_writable(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def cache_of_uv():
    """Folder in which uv keeps what it has downloaded, None where it can't be written."""
    home = os.path.expanduser('~')
    base = os.environ.get('XDG_CACHE_HOME') or os.path.join(home, '.cache')
    folder = Path(os.environ.get('UV_CACHE_DIR') or Path(base) / 'uv')
    return folder if folder.is_absolute() and is_writable(folder) else None


class Environment:
    """A virtual environment, with a note in it of what it was made from.

    The note is empty until the end: an environment in which installing was killed is made anew, as
    is one whose pins or Python have changed. One that was made elsewhere is never emptied.
    """

    def __init__(self, folder, pip_args=()):
        self.folder, self.pip_args = Path(folder), list(pip_args)
        self.python = self.folder / 'bin' / 'python'
        self.note, self.lock = self.folder / '.made-from.json', self.folder / '.made-from.lock'
        self._uv = None

    def read_note(self):
        try:
            return json.loads(self.note.read_text())
        except (OSError, ValueError):
            return {}

    def write_note(self, **content):
        self.note.write_text(json.dumps({'ours': self.ours, **content}))

    @contextlib.contextmanager
    def alone(self):
        """Nobody else makes or fills it meanwhile; others wait. (.lock is uv's own lock.)"""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = self.lock.open('w')
        except OSError as error:
            raise SystemExit(
                f'error: {self.folder} can not be written ({error.strerror}); name a folder that '
                'can: make VENV=...'
            ) from None
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            others = [path for path in self.folder.iterdir() if path != self.lock]
            self.ours = self.read_note().get('ours', not others)
            yield

    def runs(self):
        return self.python.exists() and not failed(self.python, '-c', '')

    def make(self):
        """Make it, empty; one from elsewhere stays as it is."""
        if not self.ours:
            if not (self.folder / 'pyvenv.cfg').is_file():
                self.lock.unlink()
                raise SystemExit(
                    f'error: {self.folder} has files in it and is no virtual environment; name '
                    'another folder: make VENV=...'
                )
            if failed(self.python, '-c', 'import pip'):
                subprocess.run([self.python, '-m', 'ensurepip'])
            return
        self.write_note()
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path not in (self.note, self.lock):
                path.unlink()
        if subprocess.run([sys.executable, '-m', 'venv', self.folder]).returncode:
            raise SystemExit(
                f'error: {sys.executable} could not make the virtual environment {self.folder}; '
                'install its venv (Debian, Ubuntu: apt-get install python3-venv) or name another '
                'Python: make PYTHON=...'
            )

    def pip(self, *arguments, silent=False, **variables):
        environment = {**os.environ, 'PIP_DISABLE_PIP_VERSION_CHECK': '1', **variables}
        return subprocess.run(
            [self.python, '-m', 'pip', *arguments],
            env=environment,
            capture_output=silent,
            text=True,
        )

    def pip_install(self, *arguments, **options):
        # Nothing is compiled beforehand: most of it is never imported.
        words = ['install', '--no-user', '--no-compile', *self.pip_args, *arguments]
        return self.pip(*words, **options)

    def uv(self):
        """Command and environment of `uv pip install`, or None where pip has to do the work."""
        if self._uv is None:
            self._uv = self.find_uv() or ()
        return self._uv or None

    def find_uv(self):
        found = self.pip('config', 'list', silent=True)
        try:
            if found.returncode:
                raise NoCounterpart('pip config')
            options, variables = for_uv(settings_of_pip(found.stdout), self.pip_args)
        except NoCounterpart as setting:
            print(f'uv has no counterpart of the setting "{setting}" of pip: pip does the work')
            return None
        program = self.python.with_name('uv')
        if not program.is_file():
            done = self.pip_install('--only-binary=uv', UV, silent=True)
            if done.returncode:
                print(f'{UV} is not to be had here: pip does the work, which takes some minutes')
                return None
        environment = {
            **os.environ,
            'UV_CACHE_DIR': str(cache_of_uv() or self.folder / '.uv-cache'),
            **variables,
        }
        # --no-config: a uv.toml of the user or of a folder above has nothing to do with this
        command = [program, 'pip', 'install', '--no-config', '--python', self.python, *options]
        return command, environment

    def install(self, *arguments, **variables):
        """Install by uv, where that can't be by pip. False if neither can."""
        if self.uv():
            command, environment = self.uv()
            done = subprocess.run([*command, *arguments], env={**environment, **variables})
            if done.returncode == 0:
                return True
            print('uv could not install that (see above): pip tries')
        arguments = ['--force-reinstall' if word == '--reinstall' else word for word in arguments]
        arguments = [word for word in arguments if not word.startswith('--torch-backend')]
        return self.pip_install(*arguments, **variables).returncode == 0

    def torch_backend(self):
        """Option of uv for a PyTorch without CUDA or with that of this machine's GPU, or [].

        For Linux, PyPI has PyTorch with gigabytes of CUDA. PyTorch's own index, which uv knows, has
        the other builds. One that pip's settings bring (2.13.0+cpu) is taken as it is, and an index
        that doesn't answer within seconds is let alone.
        """
        if sys.platform != 'linux' or not self.uv() or 'UV_TORCH_BACKEND' in os.environ:
            return []
        command, environment = self.uv()
        if '--no-index' in command:
            return []
        pin = re.search(r'^torch==\S+', read('requirements/common.txt'), re.MULTILINE)[0]
        quick = {'UV_HTTP_CONNECT_TIMEOUT': '5', 'UV_HTTP_TIMEOUT': '10', 'UV_HTTP_RETRIES': '1'}

        def build(*arguments, **variables):
            """Version of torch that would be installed, None if there is none."""
            done = subprocess.run(
                [*command, '--dry-run', '--no-deps', '--reinstall-package=torch', *arguments, pin],
                env={**environment, **variables},
                capture_output=True,
                text=True,
            )
            found = re.search(r'^ [+~] (torch==\S+)', done.stderr + done.stdout, re.MULTILINE)
            return found[1] if found and done.returncode == 0 else None

        if '+' in (build() or ''):
            return []
        if build('--torch-backend=auto', **quick):
            return ['--torch-backend=auto']
        print("PyTorch's own index can't be reached: torch comes from the same place as the rest")
        return []


def failed(*command):
    """Whether a command, of which nothing is shown, fails."""
    return subprocess.run(command, capture_output=True).returncode != 0


def read(name):
    return (ROOT / name).read_text(encoding='utf-8')


def digest():
    """Of everything that says what is to be installed."""
    files = [ROOT / 'requirements.txt', *sorted((ROOT / 'requirements').iterdir())]
    content = b'\0'.join(file.read_bytes() for file in files if file.is_file())
    return hashlib.sha256(content).hexdigest()


def install_requirements(environment, kind, family):
    """Bring an environment to the pinned requirements, if it isn't there already."""
    wanted = dict(family=family, python=sys.version.split()[0], requirements=digest())
    note = environment.read_note()
    kinds = note.get('kinds', [])
    up_to_date = wanted.items() <= note.items() and environment.runs()
    if up_to_date and kind in kinds:
        return
    print(f'Installing the pinned requirements into {environment.folder} ...')
    if not up_to_date:
        environment.make()
        kinds = []
    environment.write_note()
    with_deps, without = FAMILIES[family]
    with_deps = [*with_deps, *(f'requirements/{name}.txt' for name in KINDS[kind])]
    files = [word for name in with_deps for word in ('-r', name)]
    no_deps = [word for name in without for word in ('-r', name)]
    done = (
        environment.install(*environment.torch_backend(), *files)
        and environment.install('--no-deps', '--no-build-isolation', *no_deps)
        and (
            not failed(environment.python, '-c', 'import cv2')
            or environment.install('--no-deps', '--reinstall', HEADLESS)
        )
    )
    shutil.rmtree(environment.folder / '.uv-cache', ignore_errors=True)
    if not done:
        raise SystemExit(
            'error: the pinned requirements could not be installed, see above; if a package was '
            "not found, look at the network and at pip's settings (pip config list), then start "
            'the same command again'
        )
    environment.write_note(kinds=sorted({*kinds, *INCLUDED[kind]}), **wanted)


def install_package(environment):
    """Install this package, not editable; what is built on the way stays out of the source tree."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / 'build.cfg'
        settings.write_text(f'[build]\nbuild_base={folder}\n[egg_info]\negg_base={folder}\n')
        done = environment.install(
            *('--quiet', '--no-deps', '--no-build-isolation', '--reinstall', str(ROOT)),
            DIST_EXTRA_CONFIG=str(settings),
        )
    if not done:
        raise SystemExit('error: the package itself could not be installed, see above')


def main():
    words = sys.argv[1:]
    pip_args = words[words.index('--') + 1 :] if '--' in words else []
    words = words[: words.index('--')] if '--' in words else words
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', type=Path, help='where the virtual environment is, or goes')
    parser.add_argument('kind', choices=KINDS, help='what it is for')
    parser.add_argument('--family', choices=FAMILIES, default='openmmlab')
    parser.add_argument(
        '--requirements-only', action='store_true', help='leave out the package itself'
    )
    args = parser.parse_args(words)
    os.chdir(ROOT)
    sys.stdout.reconfigure(line_buffering=True)  # in a pipe too, between the lines of uv and pip
    environment = Environment(args.folder, pip_args)
    with environment.alone():
        install_requirements(environment, args.kind, args.family)
        if not args.requirements_only:
            install_package(environment)


if __name__ == '__main__':
    main()
