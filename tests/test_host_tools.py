"""MMSegmentation's own tools on a config of ours, started by the script of the documentation."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from tests.doors import config, run
from tests.paths import ROOT

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
    printed = run([sys.executable, 'host_tool.py', path, config(DEMO), *arguments], tmp_path)
    assert re.search(said, printed)
    if tool == 'browse_dataset.py':
        assert len(list((tmp_path / 'pictures').iterdir())) == 2
