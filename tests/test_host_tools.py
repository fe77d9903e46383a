"""MMSegmentation's own tools on a config of ours, started by the script of the documentation."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.doors import config
from tests.paths import ROOT, child_environment

DEMO = 'mdrl/mdrl_fcn_r18s-d8_1xb8-demo_synthetic-128x128.py'


@pytest.mark.parametrize(('tool', 'arguments', 'said'), [
    ('get_flops.py', ['--shape', '128', '128'], r'Flops: 0\.242G'),
    ('browse_dataset.py', ['--not-show', '--output-dir', 'pictures', '--cfg-options',
                           'train_dataloader.dataset.length=2'], '2/2'),
])  # fmt: skip
def test_they_run(tool, arguments, said, tmp_path):
    place = Path(importlib.util.find_spec('mmseg').origin).parent / '.mim' / 'tools'
    path = place / 'analysis_tools' / tool
    if not path.is_file():
        pytest.skip(f'this mmseg comes without {tool}')
    page = (ROOT / 'docs' / 'tools' / 'mmsegmentation.md').read_text()
    (tmp_path / 'host_tool.py').write_text(re.search(r'```python\n(.*?)```', page, re.S)[1])
    done = subprocess.run(
        [sys.executable, 'host_tool.py', path, config(DEMO), *arguments], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=child_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(said, done.stdout)
    if tool == 'browse_dataset.py':
        assert len(list((tmp_path / 'pictures').iterdir())) == 2
