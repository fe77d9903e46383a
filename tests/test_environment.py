"""Facts on versions stand in one table; what is written elsewhere agrees with it."""

import ast
import re

import pytest

from mmseg_cmdl import environment
from tests.paths import ROOT


def pins(*names):
    """Pinned distributions of requirements files."""
    text = '\n'.join((ROOT / name).read_text() for name in names)
    return dict(re.findall(r'^([\w-]+)==(\S+)$', text, flags=re.M))


@pytest.mark.parametrize(('family', 'file'), [
    ('openmmlab', 'requirements.txt'), ('onedl', 'requirements/onedl.txt')
])  # fmt: skip
def test_requirements_pin_the_tested_versions(family, file):
    found = pins(file)
    assert {name: found[name] for name in environment.TESTED[family]} == environment.TESTED[family]


def test_extras_are_the_supported_versions():
    tree = ast.parse((ROOT / 'setup.py').read_text())
    values = {
        node.targets[0].id: node.value for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id in ('EXTRAS', 'REQUIRES')
    }  # fmt: skip
    extras = ast.literal_eval(values['EXTRAS'])
    assert extras['mmseg'] == [
        f'mmcv-lite{environment.MMCV}', f'mmengine{environment.MMENGINE}',
        f'mmsegmentation{environment.MMSEG}', f'setuptools{environment.SETUPTOOLS}',
    ]  # fmt: skip
    assert f'setuptools{environment.SETUPTOOLS}' in extras['mim']
    assert f'torch{environment.TORCH}' in ast.literal_eval(values['REQUIRES'])


def test_tested_versions_are_supported():
    from packaging.specifiers import SpecifierSet

    tested = environment.TESTED
    for family, mmcv in (('openmmlab', environment.MMCV), ('onedl', environment.MMCV_OF_FORK)):
        versions = list(tested[family].values())
        for wanted, found in zip((environment.MMSEG, environment.MMENGINE, mmcv), versions):
            assert SpecifierSet(wanted).contains(found)
