"""Which versions of other packages this one runs on, and the command that installs a right one.

Versions are read from each package's ``version.py`` without importing the package: importing
``mmseg`` with an mmcv of another version ends in an assertion, and importing ``mmcv`` needs a
working OpenCV, so neither can be imported while something is wrong.
"""

import importlib
import pkgutil
import platform
import runpy
import sys
from importlib import metadata, util
from pathlib import Path
from typing import Optional

from packaging.specifiers import SpecifierSet
from packaging.version import Version

# The wheel of 1.2.0 lacks a file that importing mmseg.models reads.
MMSEG = '>=1.2.1,<2.0.0'
MMENGINE = '>=0.10.0,<1.0.0'
# mmsegmentation 1.2 refuses mmcv 2.2; its maintained fork, from 1.3 on, takes it.
MMCV = '>=2.0.0rc4,<2.2.0'
MMCV_OF_FORK = '>=2.0.0rc4,<3.0.0'
TORCH = '>=2.0'

# The distributions that bring a module; a second one overwrites the first one's files.
DISTRIBUTIONS = {
    'mmengine': ('mmengine', 'onedl-mmengine'),
    'mmcv': ('mmcv', 'mmcv-lite', 'onedl-mmcv'),
    'mmseg': ('mmsegmentation', 'onedl-mmsegmentation'),
}

# The versions that are tested; README, requirements and setup.py say the same, by a test.
TESTED = {
    'openmmlab': {'mmsegmentation': '1.2.2', 'mmengine': '0.10.7', 'mmcv-lite': '2.1.0'},
    'onedl': {
        'onedl-mmsegmentation': '1.4.2',
        'onedl-mmengine': '0.10.12',
        'mmcv-lite': '2.2.0',
    },
}
# Later ones have no pkg_resources, which OpenMMLab's mmengine imports.
SETUPTOOLS = '<81'
# An mmcv with compiled ops, for OpenMMLab's family.
COMPILED_MMCV = '>=2.0.0,<2.2.0'


def _pinned(family: str) -> list[str]:
    return [f'{name}=={version}' for name, version in TESTED[family].items()]


INSTALL_OPENMMLAB = f"pip install {' '.join(_pinned('openmmlab'))} 'setuptools{SETUPTOOLS}'"
# mmcv-lite names OpenMMLab's mmengine as a requirement, which would overwrite the fork's.
INSTALL_FORK = (
    f'pip install {" ".join(_pinned("onedl")[:2])} && pip install --no-deps {_pinned("onedl")[2]}'
)


def version_of(module: str) -> Optional[str]:
    """Version of an installed top-level package, None where there is none.

    A folder without ``__init__.py``, as an uninstall may leave it, counts as none.
    """
    loaded = getattr(sys.modules.get(module), '__version__', None)
    if loaded is not None:
        return str(loaded)
    spec = util.find_spec(module)
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).with_name('version.py')
    if file.is_file():
        return str(runpy.run_path(str(file))['__version__'])
    return str(importlib.import_module(module).__version__)


def distribution_version(name: str) -> Optional[str]:
    """Version of a distribution that pip installed, None where there is none of that name."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def is_fork() -> bool:
    """Whether the MMSegmentation found is the maintained fork (onedl-mmsegmentation).

    Where there is none, mmengine tells which one belongs here.
    """
    mmseg = version_of('mmseg')
    if mmseg is None:
        return _mmengine_of_fork()
    return Version(mmseg) >= Version('1.3')


def _mmengine_of_fork() -> bool:
    mmengine = version_of('mmengine')
    return mmengine is not None and Version(mmengine) > Version(TESTED['openmmlab']['mmengine'])


def family() -> Optional[str]:
    """Which family of MMSegmentation is found here, in words; None if nothing of any is."""
    if all(version_of(module) is None for module in DISTRIBUTIONS):
        return None
    return 'maintained fork (onedl)' if is_fork() else 'OpenMMLab'


def doubled() -> list[str]:
    """A sentence for each module that two distributions installed, with the command to run.

    They own the same files, so what was installed last has overwritten the other; it may work.
    """
    sentences = []
    for module, names in DISTRIBUTIONS.items():
        found = [name for name in names if distribution_version(name)]
        if len(found) > 1:
            sentences.append(
                f'{" and ".join(found)} own the same files, {module}/; run: '
                f'pip uninstall -y {" ".join(found)} && {_install(module)}'
            )
    return sentences


def required() -> dict[str, str]:
    """The supported versions of each package, for the MMSegmentation that is installed."""
    return {
        'torch': TORCH,
        'mmengine': MMENGINE,
        'mmcv': MMCV_OF_FORK if is_fork() else MMCV,
        'mmseg': MMSEG,
    }


def install_command(module: str) -> str:
    """The pip command that brings a supported version of one package."""
    # Both distributions own the folder mmcv/, so one has to go before the other comes.
    goes = module == 'mmcv' and distribution_version('mmcv')
    return f'pip uninstall -y mmcv && {_install(module)}' if goes else _install(module)


def _install(module: str) -> str:
    wanted = required()[module]
    if module == 'mmcv':
        return f"pip install {'--no-deps ' if is_fork() else ''}'mmcv-lite{wanted}'"
    prefix = 'onedl-' if is_fork() and module != 'torch' else ''
    name = 'mmsegmentation' if module == 'mmseg' else module
    return f"pip install '{prefix}{name}{wanted}'"


def compiled_mmcv_command() -> str:
    """The command that replaces mmcv-lite by an mmcv with compiled ops."""
    new = 'onedl-mmcv' if is_fork() else f'mmcv{COMPILED_MMCV}'
    return f"pip uninstall -y mmcv-lite && pip install '{new}'"


def _wrong_version(module: str, wanted: str) -> Optional[str]:
    found = version_of(module)
    if found is not None and SpecifierSet(wanted).contains(found, prereleases=True):
        return None
    found = f'{found} is installed' if found else 'it is not installed'
    return f'mmseg_cmdl needs {module} {wanted}, but {found}; run: {install_command(module)}'


def _python_too_new() -> Optional[str]:
    if _mmengine_of_fork() or hasattr(pkgutil, 'find_loader'):
        return None
    return (
        f'mmseg_cmdl needs Python 3.13 or older, as mmengine {version_of("mmengine")} uses '
        f'pkgutil.find_loader, but this is Python {platform.python_version()}; run: '
        'python3.13 -m venv ENV'
    )


def _missing_pkg_resources() -> Optional[str]:
    if _mmengine_of_fork() or util.find_spec('pkg_resources'):
        return None
    found = distribution_version('setuptools') or 'none'
    return (
        f'mmseg_cmdl needs setuptools {SETUPTOOLS}, whose pkg_resources mmengine '
        f'{version_of("mmengine")} imports, but {found} is installed; '
        f"run: pip install 'setuptools{SETUPTOOLS}'"
    )


def _broken_opencv() -> Optional[str]:
    try:
        importlib.import_module('cv2')
    except ImportError as error:
        return (
            f'mmseg_cmdl needs OpenCV, which cannot be imported here ({error}); run: '
            'pip install --no-deps --force-reinstall opencv-python-headless'
        )
    return None


def problem() -> Optional[str]:
    """What keeps this package from working, as one sentence; None if all is well."""
    if family() is None:
        return (
            'mmseg_cmdl needs MMSegmentation and none is installed; run: '
            f'{INSTALL_OPENMMLAB} (OpenMMLab), or: {INSTALL_FORK} (its maintained fork)'
        )
    for module, wanted in required().items():
        sentence = _wrong_version(module, wanted)
        if sentence is not None:
            return sentence
    return _python_too_new() or _missing_pkg_resources() or _broken_opencv()


def check() -> None:
    """Raise an ImportError with one sentence that says what is wrong and which command to run."""
    sentence = problem()
    if sentence is not None:
        raise ImportError(sentence)
