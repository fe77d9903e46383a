"""MMSegmentation's own networks under each method: docs/decoders.md says what they do."""

import re

import mmseg
import pytest
from mmengine.config import Config

from tests import zoo
from tests.paths import ROOT

of_its_configs = pytest.mark.skipif(
    mmseg.__version__ != '1.2.2', reason='the table is of the configs of 1.2.2'
)
SAN = ('SideAdapterCLIPHead', None)
REFUSALS = {
    ('IterativeDecodeHead', 'CAR'): 'has no conv_seg, the conv that classifies pixels',
    ('IterativeDecodeHead', None): 'can not be the kernel_generate_head of K-Net',
    ('PIDHead', None): 'takes .* and no weight and ignore_index, .* Set loss_decode',
    ('DDRHead', None): 'takes .* and no weight and ignore_index, .* Set loss_decode',
    ('SegmenterMaskTransformerHead', 'CAR'): 'has no conv_seg, the conv that classifies pixels',
    ('SegmenterMaskTransformerHead', None): 'has no conv_seg, so it has no feature map before',
    ('PointHead', 'CAR'): 'has no conv_seg, the conv that classifies pixels',
    ('SideAdapterCLIPHead', 'CAR'): 'which CAR is not for: it regularises the features of a head',
    SAN: 'of SideAdapterCLIPHead, which no head of ours can stand in for',
    ('OCRHead', 'DGCW'): 'Name a context that is not a cascade head, such as PSPHead',
}


@pytest.mark.long
@pytest.mark.slow
@of_its_configs
def test_every_form_of_network_does_what_the_table_says():
    """Built, trained for a step and predicted; never coarser than before; refused in a sentence."""
    found = zoo.outcomes()
    for key, results in found.items():
        before = results.get(None)
        for method in zoo.METHODS if results else ():
            value, head = results[method], key[3][-1]
            if isinstance(value, int):
                assert value == before, (key, method)
            else:
                said = REFUSALS.get((head, method), REFUSALS.get((head, None)))
                assert said, (key, method, value)
                assert re.search(said, value), (key, method, value)
                assert '\n' not in value
    page = (ROOT / 'docs' / 'decoders.md').read_text()
    assert zoo.summary(found) in page
    assert '\n'.join(zoo.table(found)) in page


@of_its_configs
@pytest.mark.parametrize('method', zoo.METHODS)
def test_san_is_refused_in_a_sentence(method):
    """Before its encoders, CLIP's, are run."""
    (path, *_) = sorted((zoo.CONFIGS / 'san').glob('*.py'))
    said = zoo.outcome(Config.fromfile(path, import_custom_modules=False).model.to_dict(), method)
    assert re.search(REFUSALS.get(('SideAdapterCLIPHead', method), REFUSALS[SAN]), said), said
    assert 'argument' not in said
    assert '\n' not in said


def test_the_page_says_why_there_is_no_stride():
    page = (ROOT / 'docs' / 'decoders.md').read_text().splitlines()
    for head, note in zoo.NOTES.items():
        if head:
            assert [row for row in page if row.startswith(f'| {head} | ') and note in row], head
    assert 'tested with a plain form of it' in zoo.NOTES['PSAHead']
