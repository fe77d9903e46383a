"""Every tutorial of docs/tutorials, block by block, in a folder of its own.

A `python` block whose first line is `# NAME.py` is saved as that file; one that begins with
`# needs: MODULE` is left out where there is no such module; all others are run, and so is every
`shell` block, with the tools beside it. Numbers of iterations are made small.
"""

import importlib.util
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests import doors
from tests.paths import ROOT, TOOLS, free_port

TUTORIALS = ROOT / 'docs' / 'tutorials'
# what is long in the text: what the test makes of it
SHORT = {
    'max_iters=300': 'max_iters=4',
    'val_interval=100': 'val_interval=4',
    'end=300': 'end=4',
    'checkpoint=dict(interval=100)': 'checkpoint=dict(interval=4), logger=dict(interval=1)',
    'iter_300.pth': 'iter_4.pth',
    '--iters 300': '--iters 2',
    'batch_size=8,': 'batch_size=4, num_workers=0, persistent_workers=False,',
}
pytestmark = pytest.mark.skipif(sys.platform == 'win32', reason='bash blocks')


def blocks(page):
    """(language, text) of the page's python and shell blocks, in order."""
    text = (TUTORIALS / f'{page}.md').read_text()
    return re.findall(r'^```(python|shell)\n(.*?)^```', text, re.DOTALL | re.MULTILINE)


def shortened(text):
    for long, short in SHORT.items():
        text = text.replace(long, short)
    return text


def run(command, folder):
    """Run a command in `folder`, where `python` is the one of these tests."""
    first = Path(sys.executable).parent
    path = os.pathsep.join([str(folder / 'bin'), str(first), os.environ['PATH']])
    return doors.run(command, folder, PATH=path, PORT=str(free_port()))


def follow(page, folder):
    """Do what a page says; returns what its blocks printed, in order."""
    if not (folder / 'tools').exists():
        (folder / 'tools').symlink_to(TOOLS, target_is_directory=True)
    printed = []
    for language, text in blocks(page):
        text = shortened(text)
        name = re.match(r'# (\w+\.py)\n', text)
        needs = re.match(r'# needs: (\w+)\n', text)
        if needs and importlib.util.find_spec(needs[1]) is None:
            continue
        if language == 'shell':
            printed.append(run(['bash', '-euo', 'pipefail', '-c', text], folder))
        elif name:
            (folder / name[1]).write_text(text)
        else:
            printed.append(run([sys.executable, '-c', text], folder))
    return printed


@pytest.fixture(scope='module')
def own_data(tmp_path_factory):
    """The folder that the first tutorial leaves, and what it printed."""
    folder = tmp_path_factory.mktemp('tutorials')
    return folder, follow('own-data', folder)


@pytest.fixture
def folder(own_data, tmp_path):
    """A copy of the first tutorial's folder."""
    return Path(shutil.copytree(own_data[0], tmp_path / 'tutorial', symlinks=True))


def test_own_data(own_data):
    folder, printed = own_data
    _, prepared, _, trained, tested, predicted = printed
    shares = [float(share) for share in re.findall(r'class \d: ([\d.]+)%', prepared)]
    assert len(shares) == 2
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert len(list(folder.glob('my_data/images/train/*.jpg'))) == 32
    assert len(list(folder.glob('my_data/annotations/val/*.png'))) == 8
    state = torch.load(folder / 'work_dirs/my_mdrl/iter_4.pth', weights_only=False)['state_dict']
    assert state['decode_head.bank.distributions'].shape == (2, 9, 64)
    assert state['decode_head.bank.num_updates'] == 4
    assert (folder / 'work_dirs/my_mdrl/best_mIoU_iter_4.pth').is_file()
    scores = [float(re.findall(r'mIoU: +([\d.]+)', output)[-1]) for output in (trained, tested)]
    assert scores[0] == pytest.approx(scores[1], abs=0.01)
    assert len(list(folder.rglob('pictures/**/*.png'))) == 8
    share = float(re.search(r'([\d.]+)% of the picture is leaf', predicted)[1])
    assert 0 <= share <= 100


@pytest.mark.parametrize('kind', ['grey', 'binary', 'palette', 'color'])
def test_masks_of_all_kinds_become_the_same_numbers(kind, tmp_path):
    for _, text in blocks('own-data')[:3]:
        name = re.match(r'# (\w+\.py)\n', text)
        if name:
            (tmp_path / name[1]).write_text(text)
    run([sys.executable, 'make_example.py', kind], tmp_path)
    modes = {Image.open(path).mode for path in (tmp_path / 'my_photos/masks').iterdir()}
    assert modes == {{'palette': 'P', 'color': 'RGB'}.get(kind, 'L')}
    run([sys.executable, 'prepare.py'], tmp_path)
    masks = sorted((tmp_path / 'my_data/annotations').rglob('*.png'))
    numbers = np.stack([np.array(Image.open(path)) for path in masks])
    assert numbers.shape == (40, 128, 128)
    assert np.bincount(numbers.ravel(), minlength=256).nonzero()[0].tolist() == [0, 1]
    # whatever they were painted with
    assert int(numbers.sum()) == 119616


def test_own_config(folder):
    trained, strides = follow('own-config', folder)
    assert 'MDRLHead: left out num_convs=2' in trained
    for name in ('loss_ce', 'coarse_loss_ce', 'acc_distribution'):
        assert f'decode.{name}: ' in trained
    lines = re.findall(r'(\w+): stride (\d+), ([\d.]+) million', strides)
    assert [line[0] for line in lines] == [
        'my_fcn', 'my_fcn_with_mdrl', 'my_psp_with_mdrl', 'my_fcn_with_car', 'my_ocrnet_with_mdrl'
    ]  # fmt: skip
    assert {line[1] for line in lines} == {'8'}
    size = {name: float(millions) for name, _, millions in lines}
    assert 0 < size['my_fcn_with_mdrl'] < size['my_psp_with_mdrl']


def test_several_gpus(folder):
    (folder / 'bin').mkdir()
    stand_in = folder / 'bin' / 'srun'
    stand_in.write_text('#!/bin/sh\necho "srun $@"\n')
    stand_in.chmod(0o755)
    ranks, slurm = follow('several-gpus', folder)
    assert 'GPU number: 2' in ranks
    assert len(re.findall(r'mIoU: +([\d.]+)', ranks)) == 2
    state = torch.load(folder / 'work_dirs/two/iter_4.pth', weights_only=False)['state_dict']
    assert state['decode_head.bank.num_updates'] == 4
    assert '--ntasks=8 --ntasks-per-node=4 --cpus-per-task=5' in slurm
    assert slurm.strip().endswith('my_mdrl.py --launcher slurm --resume')


def test_what_was_learned(folder):
    follow('what-was-learned', folder)
    for name in ('space/feature_space.png', 'compactness/compactness.png'):
        assert np.asarray(Image.open(folder / name).convert('L')).std() > 5
    numbers = json.loads((folder / 'space/feature_space.json').read_text())['models']['my_mdrl']
    assert numbers['sampled'] == {'soil': 200, 'leaf': 200}
    assert -1 <= numbers['silhouette'] <= 1
    assert (folder / 'map/distribution_map.json').is_file()


def test_export(folder):
    _, read = follow('export', folder)
    shape, share = re.search(r'(\(\d+, \d+\)) ([\d.]+)% of the picture is leaf', read).groups()
    assert shape == '(128, 128)'
    assert 0 <= float(share) <= 100


def test_without_runner(tmp_path):
    alone, together = follow('without-runner', tmp_path)[:2]
    assert float(re.search(r'rank 0: ([\d.]+)% of new pixels right', alone)[1]) > 90
    assert [
        float(share) > 90 for share in re.findall(r'rank \d: ([\d.]+)% of new pixels', together)
    ] == [True, True]
    state = torch.load(tmp_path / 'network.pth')
    assert state['head.bank.num_updates'] == 60
    lengths = state['head.bank.distributions'].norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


@pytest.mark.long
def test_which_method_helps(folder):
    (folder / 'my_fcn.py').write_text(shortened(blocks('own-config')[0][1]))
    follow('which-method-helps', folder)
    study = json.loads((folder / 'work_dirs/study/study.json').read_text())
    assert {arm['name'] for arm in study['arms']} == {study['baseline'], 'mdrl'}
    for name in ('study.md', 'study.html'):
        assert (folder / 'work_dirs/study' / name).is_file()
