"""The gallery: which pictures it has, and where its models come from."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.analysis.conftest import tool
from tests.paths import ROOT, TOOLS

gallery = tool('gallery')


def test_commands_and_pictures_are_there():
    commands = {figure.command for figure in gallery.FIGURES}
    tools = {path.stem for path in (TOOLS / 'analysis').glob('*.py')} - {'gallery'}
    assert commands == tools
    drawn = set()
    for figure in gallery.FIGURES:
        # one without arguments shows more of what an earlier one has drawn
        assert figure.arguments is not None or figure.command in drawn
        drawn.add(figure.command)


def test_one_figure_of_the_demos_folder(trained, tmp_path):
    for name, (config, checkpoint) in (('fcn', trained.fcn), ('mdrl_fcn', trained.mdrl)):
        (tmp_path / 'demo' / name).mkdir(parents=True)
        shutil.copy(config, tmp_path / 'demo' / name)
        shutil.copy(checkpoint, tmp_path / 'demo' / name / 'iter_1.pth')
        (tmp_path / 'demo' / name / 'last_checkpoint').write_text('/moved/since/iter_1.pth')
    Image.new('RGB', (3, 2), (1, 2, 3)).save(tmp_path / 'demo' / 'demo.png')
    arguments = '--demo {0}/demo --out {0}/docs --work-dir {0}/work --max-images 1'
    gallery.main([*arguments.format(tmp_path).split(), '--only', 'channel_variance'])
    page = (tmp_path / 'docs' / 'gallery.md').read_text()
    (picture,) = re.findall(r'!\[.*\]\((.*)\)', page)
    original = tmp_path / 'work' / 'channel_variance' / 'channel_variance.png'
    with Image.open(tmp_path / 'docs' / picture) as copy, Image.open(original) as drawn:
        np.testing.assert_array_equal(np.asarray(copy), np.asarray(drawn.convert('RGB')))
    with Image.open(tmp_path / 'docs' / 'demo.png') as copy:
        assert copy.getcolors() == [(6, (1, 2, 3))]
    assert re.search(r'Measured here: mean: FCN [\d.e-]+, MDRL [\d.e-]+\.\n', page)
    assert str(tmp_path) not in page


def test_large_pictures_get_256_colours(tmp_path):
    noise = np.random.randint(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / 'a.png')
    gallery.small_copy(tmp_path / 'a.png', tmp_path / 'b.png', small=1000)
    with Image.open(tmp_path / 'b.png') as copy:
        assert len(copy.convert('RGB').getcolors()) <= 256
        assert copy.size == (64, 64)


def test_a_folder_without_a_demo_is_named(tmp_path):
    with pytest.raises(SystemExit, match='fcn has no config and checkpoint; run `make demo` first'):
        gallery.main(['--demo', str(tmp_path), '--out', str(tmp_path / 'docs')])


def figures_in(text):
    """(name, model): value of lines such as `Measured here: mIoU: FCN 48.33, MDRL 54.99; ...`."""
    found = {}
    for line in re.findall(r'^Measured here: (.*)\.$', text, flags=re.M):
        for part in line.split('; '):
            name, colon, values = part.partition(': ')
            for value in re.findall(r'(\w+) ([\d.]+)(?:,|$)', values) if colon else ():
                found.setdefault((name, value[0]), set()).add(value[1])
    return found


def test_a_name_has_one_number_in_all_documents():
    """Compactness and class dependency are about the same cosines."""
    pages = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
    found = figures_in('\n'.join(page.read_text() for page in pages))
    gallery_page = (ROOT / 'docs' / 'gallery.md').read_text()
    assert len(re.findall('cosine of centers: ', gallery_page)) == 2
    assert {('cosine of centers', 'FCN'), ('mIoU', 'MDRL')} <= set(found)
    assert {key: values for key, values in found.items() if len(values) > 1} == {}
    assert figures_in('Measured here: a b: FCN 1, X 2.\nMeasured here: a b: FCN 3; c: X 4.') == {
        ('a b', 'FCN'): {'1', '3'}, ('a b', 'X'): {'2'}, ('c', 'X'): {'4'},
    }  # fmt: skip
