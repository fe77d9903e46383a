"""What an install carries, what an import changes, and what it says where it can't work."""

import ast
import os
import shutil
import zipfile
from types import SimpleNamespace

import pytest

import mmseg_cmdl
from mmseg_cmdl import __main__ as report
from mmseg_cmdl import environment
from tests.doors import through_mim
from tests.paths import INSTALLED, PACKAGE, ROOT, python


def test_the_installed_package_is_under_test():
    if os.environ.get('MMSEG_CMDL_TEST_INSTALLED') != '1':
        pytest.skip('only where MMSEG_CMDL_TEST_INSTALLED=1, as `make test` sets it')
    assert INSTALLED
    assert PACKAGE.parent != ROOT
    asked_for = os.environ.get('MMSEG_CMDL_TEST_FAMILY', 'openmmlab')
    assert environment.is_fork() == (asked_for == 'onedl')


# ------------------------------------------------------------------------------- the wheel


@pytest.fixture(scope='module')
def wheels(tmp_path_factory):
    """The wheel built from the source tree, the one built from its sdist, and the tree itself."""
    if not (ROOT / 'setup.py').is_file():
        pytest.skip('no source tree around the tests')
    folder = tmp_path_factory.mktemp('build')
    tree = folder / 'tree'
    for name in ('mmseg_cmdl', 'configs', 'tools', 'tests', 'requirements'):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns('__pycache__'))
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy(file, tree)
    before = {path for path in tree.rglob('*') if path.is_file()}
    # Left over from an earlier build: must not reach the wheel.
    stale = tree / 'build' / 'lib' / 'mmseg_cmdl'
    (stale / '.mim' / 'configs').mkdir(parents=True)
    (stale / 'removed_module.py').touch()
    (stale / '.mim' / 'configs' / 'removed_config.py').touch()

    def build(kind, source, target):
        code = f'from setuptools import build_meta; print(build_meta.build_{kind}({str(target)!r}))'
        done = python('-c', code, cwd=source)
        assert done.returncode == 0, done.stderr
        return target / done.stdout.split()[-1]

    (folder / 'direct').mkdir()
    direct = build('wheel', tree, folder / 'direct')
    left = {path for path in tree.rglob('*') if path.is_file()} - before
    sdist = build('sdist', tree, folder)
    shutil.unpack_archive(sdist, folder / 'unpacked', filter='data')
    (source,) = (folder / 'unpacked').iterdir()
    (folder / 'through_sdist').mkdir()
    return (
        direct,
        build('wheel', source, folder / 'through_sdist'),
        {path.relative_to(tree).parts[0] for path in left},
    )


def test_a_wheel_carries_package_configs_tools_and_model_index(wheels):
    names = set(zipfile.ZipFile(wheels[0]).namelist())
    expected = {
        f'mmseg_cmdl/{path.relative_to(ROOT / "mmseg_cmdl").as_posix()}'
        for path in (ROOT / 'mmseg_cmdl').rglob('*.py')
    }
    for part in ('configs', 'tools'):
        expected |= {
            f'mmseg_cmdl/.mim/{path.relative_to(ROOT).as_posix()}'
            for path in (ROOT / part).rglob('*')
            if path.is_file() and '__pycache__' not in path.parts
        }
    expected |= {'mmseg_cmdl/.mim/model-index.yml', 'mmseg_cmdl/py.typed'}
    assert {name for name in names if '.dist-info/' not in name} == expected
    assert 'mmseg_cmdl/.mim/tools/train.py' in names
    assert any(name.startswith('mmseg_cmdl/.mim/configs/mdrl/') for name in names)
    assert any(name.endswith('LICENSE') for name in names)


def test_every_function_has_the_types_that_py_typed_promises():
    """`make lint` checks them; here, that none is missing."""
    untyped = []
    for path in sorted(PACKAGE.rglob('*.py')):
        if '.mim' in path.relative_to(PACKAGE).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef):
                continue
            arguments = node.args
            named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            named = [a for a in named if a.arg not in ('self', 'cls')]
            named += [a for a in (arguments.vararg, arguments.kwarg) if a is not None]
            result = node.returns is not None or (node.name == '__init__' and named)
            if not result or any(a.annotation is None for a in named):
                untyped.append(f'{path.relative_to(PACKAGE)}: {node.name}')
    assert untyped == []


def test_launchers_stay_executable_in_a_wheel(wheels):
    infos = zipfile.ZipFile(wheels[0]).infolist()
    scripts = [info for info in infos if info.filename.endswith('.sh')]
    assert len(scripts) == 4
    assert all(info.external_attr >> 16 & 0o111 for info in scripts)


def test_a_wheel_by_way_of_the_sdist_is_the_same(wheels):
    direct, through_sdist = (
        {info.filename: info.CRC for info in zipfile.ZipFile(wheel).infolist()}
        for wheel in wheels[:2]
    )
    assert direct == through_sdist


def test_building_leaves_the_source_tree_clean(wheels):
    assert wheels[2] <= {'build', 'mmseg_cmdl.egg-info'}


def test_metadata_leaves_the_choice_of_mmcv_to_the_user(wheels):
    with zipfile.ZipFile(wheels[0]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith('.dist-info/METADATA'))
        lines = wheel.read(name).decode().splitlines()
    required = [line for line in lines if line.startswith('Requires-Dist:')]
    always = {line.split()[1].rstrip(';') for line in required if 'extra ==' not in line}
    assert {word.split('>')[0] for word in always} == {
        'numpy',
        'torch',
        'packaging',
        'ftfy',
        'regex',
    }
    extras = {line.split()[1] for line in lines if line.startswith('Provides-Extra:')}
    assert extras == {'mmseg', 'mim', 'analysis', 'export', 'dev'}
    assert f'Version: {mmseg_cmdl.__version__}' in lines


@pytest.mark.skipif(not INSTALLED, reason='mim needs an ordinary install')
def test_mim_trains_and_tests_in_an_empty_folder(tiny_config, tmp_path):
    pytest.importorskip('mim')
    folder = tmp_path / 'empty'
    folder.mkdir()
    through_mim('train', tiny_config, '--work-dir', 'job', folder=folder)
    assert (folder / 'job' / 'iter_4.pth').is_file()
    words = ['--checkpoint', 'job/iter_4.pth', '--work-dir', 'test']
    through_mim('test', tiny_config, *words, folder=folder)
    assert len(list(folder.glob('test/*/*.json'))) == 1


# ------------------------------------------------------------------------------- the import

UNCHANGED = r"""
import importlib.machinery, inspect, sys, types

# What mmseg_cmdl would do for mmcv-lite, so that everything can be imported before it.
try:
    import mmcv._ext
except ImportError:
    ext = types.ModuleType('mmcv._ext')
    ext.__spec__ = importlib.machinery.ModuleSpec('mmcv._ext', loader=None)
    def __getattr__(name):
        if name.startswith('_'):
            raise AttributeError(name)
        return print

    ext.__getattr__ = __getattr__
    sys.modules['mmcv._ext'] = ext

import mmengine.registry, mmengine.runner, mmengine.hooks, mmengine.optim, mmengine.visualization
import mmseg.apis, mmseg.datasets, mmseg.engine, mmseg.evaluation, mmseg.models, mmseg.registry
import mmseg.structures, mmseg.visualization, torch
from mmengine.registry import Registry


def registries():
    found = {}
    for module in (mmengine.registry, mmseg.registry):
        for registry in vars(module).values():
            if isinstance(registry, Registry):
                found[registry.scope, registry.name] = registry
    return found


def contents():
    return {key: dict(registry.module_dict) for key, registry in registries().items()}


def attributes():
    hosts = ('mmcv', 'mmengine', 'mmseg', 'torch.serialization', 'torch.nn', 'pickle', 'numpy.core')
    return {
        (name, key): id(value)
        for name, module in list(sys.modules.items())
        if name.startswith(hosts) and isinstance(module, types.ModuleType)
        for holder in [module, *(v for v in vars(module).values() if inspect.isclass(v))]
        for key, value in ((f'{getattr(holder, "__qualname__", "")}.{k}', v)
                           for k, v in list(vars(holder).items()))
        if isinstance(value, (types.FunctionType, type, staticmethod, classmethod, property))
    }


registered, patched = contents(), attributes()
import mmseg_cmdl
after = contents()
assert after.keys() == registered.keys()
new = {}
for key, entries in after.items():
    for name, entry in entries.items():
        if name in registered[key]:
            assert entry is registered[key][name], f'{key} {name} was replaced'
        else:
            new[name] = entry.__module__
assert registered.keys() >= {('mmengine', 'model'), ('mmseg', 'model'), ('mmseg', 'dataset')}
for key, entries in registered.items():
    assert entries.keys() <= after[key].keys(), f'{key} lost entries'
assert new and all(module.startswith('mmseg_cmdl.') for module in new.values()), new
now = attributes()
changed = [key for key in patched if patched[key] != now.get(key)]
assert not changed, changed
assert len(patched) > 3000, len(patched)
print(*sorted(new))
"""


def test_import_registers_only_new_names_and_patches_nothing():
    done = python('-c', UNCHANGED)
    assert done.returncode == 0, done.stderr
    names = {'MDRLHead', 'BankHealthHook', 'CamVidDataset', 'SyntheticScenesDataset'}
    assert names <= set(done.stdout.split())


def test_registering_again_changes_nothing():
    from mmseg.registry import MODELS

    before = dict(MODELS.module_dict)
    mmseg_cmdl.register()
    assert MODELS.module_dict == before


NOTEBOOK = """
import importlib, sys
try:
    from mmseg.apis import init_model  # the first cell, which fails without compiled ops
except ModuleNotFoundError:
    pass
import mmseg_cmdl
from mmseg.apis import init_model
importlib.reload(mmseg_cmdl)
for name in sorted(name for name in sys.modules if name.startswith('mmseg_cmdl.')):
    importlib.reload(sys.modules[name])
for name in [name for name in sys.modules if name.split('.')[0] == 'mmseg_cmdl']:
    del sys.modules[name]
import mmseg_cmdl
from mmseg.registry import MODELS
from mmseg_cmdl.models import MDRLHead
assert MODELS.get('MDRLHead') is MDRLHead
from mmseg_cmdl import registry
try:
    @registry.MODELS.register_module()
    class FCNHead:
        pass
except KeyError as error:
    print(error)
"""


def test_cells_of_a_notebook_run_again():
    """Import order, reload, and import after the modules were thrown away; others' names stay."""
    done = python('-c', NOTEBOOK)
    assert done.returncode == 0, done.stderr
    assert 'FCNHead is already registered' in done.stdout


# ------------------------------------------------------------------ where it can't work

GOOD = {'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmseg': '1.2.2'}


def fake_packages(folder, versions):
    """Packages that have a version and can't be imported, as `mmseg` beside a wrong mmcv."""
    for module, version in versions.items():
        (folder / module).mkdir(parents=True)
        (folder / module / '__init__.py').write_text('raise AssertionError("do not import me")')
        (folder / module / 'version.py').write_text(f"__version__ = '{version}'")
    return folder


def import_error(folder, hidden=()):
    """The last line that `import mmseg_cmdl` prints with `folder` first on the path."""
    hide = ''.join(f'sys.modules[{name!r}] = None; ' for name in hidden)
    done = python('-c', f'import sys; {hide}import mmseg_cmdl', first_on_path=[folder])
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('ImportError: '), done.stderr
    return last[len('ImportError: ') :]


@pytest.mark.parametrize(
    ('versions', 'wanted', 'install'),
    [
        ({'mmseg': '1.2.0'}, '>=1.2.1,<2.0.0', "'mmsegmentation"),
        ({'mmseg': '0.30.0'}, '>=1.2.1,<2.0.0', "'mmsegmentation"),
        ({'mmcv': '1.7.2'}, '>=2.0.0rc4,<2.2.0', "'mmcv-lite"),
        ({'mmcv': '2.2.0'}, '>=2.0.0rc4,<2.2.0', "'mmcv-lite"),
        ({'mmengine': '0.7.4'}, '>=0.10.0,<1.0.0', "'mmengine"),
        ({'mmengine': '1.0.0'}, '>=0.10.0,<1.0.0', "'mmengine"),
        ({'mmseg': '1.4.2', 'mmcv': '3.0.0'}, '>=2.0.0rc4,<3.0.0', "--no-deps 'mmcv-lite"),
        ({'mmseg': '1.4.2', 'mmengine': '0.9.0'}, '>=0.10.0,<1.0.0', "'onedl-mmengine"),
    ],
)
def test_unsupported_version(tmp_path, versions, wanted, install):
    module, found = list(versions.items())[-1]
    assert import_error(fake_packages(tmp_path, {**GOOD, **versions})) == (
        f'mmseg_cmdl needs {module} {wanted}, but {found} is installed; '
        f"run: pip install {install}{wanted}'"
    )


@pytest.mark.parametrize(
    ('module', 'command'),
    [
        ('mmseg', "pip install 'mmsegmentation>=1.2.1,<2.0.0'"),
        ('mmcv', "pip install 'mmcv-lite>=2.0.0rc4,<2.2.0'"),
        ('mmengine', "pip install 'mmengine>=0.10.0,<1.0.0'"),
        ('torch', "pip install 'torch>=2.0'"),
    ],
)
def test_missing_package(tmp_path, module, command):
    sentence = import_error(fake_packages(tmp_path, GOOD), hidden=[module])
    assert sentence.startswith(f'mmseg_cmdl needs {module} >=')
    assert sentence.endswith(f', but it is not installed; run: {command}')


def test_missing_package_of_the_fork(tmp_path):
    """What is left says which family the missing one has to be of."""
    folder = fake_packages(tmp_path, {**GOOD, 'mmengine': '0.10.12'})
    assert import_error(folder, hidden=['mmseg']).endswith(
        "run: pip install 'onedl-mmsegmentation>=1.2.1,<2.0.0'"
    )


def test_folder_left_by_an_uninstall_is_no_package(tmp_path, monkeypatch):
    (tmp_path / 'left_behind' / 'ops').mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    assert environment.version_of('left_behind') is None


def test_nothing_installed_names_both_families(tmp_path):
    sentence = import_error(tmp_path, hidden=['mmseg', 'mmcv', 'mmengine'])
    assert environment.INSTALL_OPENMMLAB in sentence
    assert environment.INSTALL_FORK in sentence


def test_compiled_mmcv_of_a_wrong_version_goes_first(tmp_path):
    folder = fake_packages(tmp_path, {**GOOD, 'mmcv': '2.2.0'})
    (folder / 'mmcv-2.2.0.dist-info').mkdir()
    (folder / 'mmcv-2.2.0.dist-info' / 'METADATA').write_text('Name: mmcv\nVersion: 2.2.0\n')
    assert import_error(folder).endswith(
        "run: pip uninstall -y mmcv && pip install 'mmcv-lite>=2.0.0rc4,<2.2.0'"
    )


def test_setuptools_without_pkg_resources(tmp_path):
    sentence = import_error(fake_packages(tmp_path, GOOD), hidden=['pkg_resources'])
    assert sentence.startswith('mmseg_cmdl needs setuptools <81, ')
    assert sentence.endswith("is installed; run: pip install 'setuptools<81'")


def test_newer_mmengine_needs_no_pkg_resources(tmp_path):
    folder = fake_packages(tmp_path, {**GOOD, 'mmseg': '1.4.2', 'mmengine': '0.10.12'})
    (folder / 'cv2.py').write_text('raise ImportError("stop here")')
    assert 'OpenCV' in import_error(folder, hidden=['pkg_resources'])


def test_opencv_without_its_system_libraries(tmp_path):
    folder = fake_packages(tmp_path, GOOD)
    (folder / 'cv2.py').write_text(
        'raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")'
    )
    assert import_error(folder) == (
        'mmseg_cmdl needs OpenCV, which cannot be imported here (libGL.so.1: cannot open shared '
        'object file: No such file or directory); run: '
        'pip install --no-deps --force-reinstall opencv-python-headless'
    )


def test_python_too_new_for_mmengine(tmp_path):
    folder = fake_packages(tmp_path, GOOD)
    (folder / 'sitecustomize.py').write_text('import pkgutil; del pkgutil.find_loader')
    sentence = import_error(folder)
    assert sentence.startswith('mmseg_cmdl needs Python 3.13 or older, ')


# ------------------------------------------------------------------------------ the report


def test_report_of_a_working_environment():
    done = python('-m', 'mmseg_cmdl')
    assert done.returncode == 0, done.stderr
    assert f'mmseg_cmdl              {mmseg_cmdl.__version__} in {PACKAGE}' in done.stdout
    lines = {line[2:18].strip(): line[18:].split()[0] for line in done.stdout.splitlines()[-5:]}
    assert lines.keys() == {'import', 'mim', 'compiled mmcv', 'CUDA', 'distributed'}
    assert lines['import'] == 'yes'
    assert lines['distributed'] == 'yes'
    if not INSTALLED:
        assert lines['mim'] == 'no'


def test_mim_in_an_environment_without_pip(monkeypatch):
    """As `uv venv` makes it: openmim is there and can't be imported."""

    def without_pip(name):
        raise ModuleNotFoundError("No module named 'pip'")

    monkeypatch.setattr(report, 'importlib', SimpleNamespace(import_module=without_pip))
    assert report.mim_works() == (
        False,
        "ModuleNotFoundError: No module named 'pip', which mim needs; run: python -m ensurepip",
    )


def test_report_of_a_broken_environment(tmp_path):
    folder = fake_packages(tmp_path, {**GOOD, 'mmcv': '2.2.0'})
    done = python('-m', 'mmseg_cmdl', first_on_path=[folder])
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith('  import '))
    assert line.split(maxsplit=2)[1:] == ['no', import_error(folder)]


@pytest.mark.parametrize(
    ('versions', 'family'),
    [
        ({}, 'OpenMMLab'),
        ({'mmseg': '1.4.2', 'mmengine': '0.10.12', 'mmcv': '2.2.0'}, 'maintained fork (onedl)'),
    ],
)
def test_report_names_the_family(tmp_path, versions, family):
    done = python('-m', 'mmseg_cmdl', first_on_path=[fake_packages(tmp_path, {**GOOD, **versions})])
    assert f'  family                  {family}\n' in done.stdout, done.stderr


def test_report_where_there_is_neither_family(tmp_path):
    hide = 'import sys\nfor name in ("mmseg", "mmcv", "mmengine"): sys.modules[name] = None\n'
    (tmp_path / 'sitecustomize.py').write_text(hide)
    done = python('-m', 'mmseg_cmdl', first_on_path=[tmp_path])
    assert done.returncode == 0, done.stderr
    assert 'neither OpenMMLab nor its maintained fork (onedl)' in done.stdout
    assert environment.INSTALL_OPENMMLAB in done.stdout
    assert environment.INSTALL_FORK in done.stdout


def test_report_names_a_module_that_two_distributions_own(tmp_path):
    folder = fake_packages(tmp_path, {'mmseg': '1.4.2', 'mmengine': '0.10.7', 'mmcv': '2.2.0'})
    for name in ('mmengine', 'onedl-mmengine'):
        info = folder / f'{name.replace("-", "_")}-0.10.7.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(f'Name: {name}\nVersion: 0.10.7\n')
    done = python('-m', 'mmseg_cmdl', first_on_path=[folder])
    (line,) = (line for line in done.stdout.splitlines() if 'own the same files' in line)
    assert line == (
        '  mmengine and onedl-mmengine own the same files, mmengine/; run: pip uninstall -y '
        "mmengine onedl-mmengine && pip install 'onedl-mmengine>=0.10.0,<1.0.0'"
    )


def test_report_without_torch(tmp_path):
    blocker = tmp_path / 'sitecustomize.py'
    blocker.write_text("import sys; sys.modules['torch'] = None")
    done = python('-m', 'mmseg_cmdl', first_on_path=[tmp_path])
    assert done.returncode == 0, done.stderr
    assert "run: pip install 'torch>=2.0'" in done.stdout
