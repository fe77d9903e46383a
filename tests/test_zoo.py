"""MMSegmentation's own networks under each method: docs/decoders.md says what they do."""

import re

import mmseg
import pytest

from tests import zoo
from tests.paths import ROOT

REFUSALS = {
    ('IterativeDecodeHead', 'CAR'): 'has no conv_seg, the conv that classifies pixels',
    ('IterativeDecodeHead', None): 'can not be the kernel_generate_head of K-Net',
    ('PIDHead', None): 'takes .* and no weight and ignore_index, .* Set loss_decode',
    ('DDRHead', None): 'takes .* and no weight and ignore_index, .* Set loss_decode',
    ('SegmenterMaskTransformerHead', 'CAR'): 'has no conv_seg, the conv that classifies pixels',
    ('SegmenterMaskTransformerHead', None): 'has no conv_seg, so it has no feature map before',
    ('PointHead', 'CAR'): 'has no conv_seg, the conv that classifies pixels',
    ('OCRHead', 'DGCW'): 'Name a context that is no cascade head, such as PSPHead',
}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(mmseg.__version__ != '1.2.2', reason='the table is of the configs of 1.2.2')
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
