"""LeftRightTTAModel: left and right of a flipped image are swapped back before averaging."""

import copy

import pytest
import torch
from mmengine.structures import PixelData
from mmseg.models.segmentors.seg_tta import SegTTAModel
from mmseg.structures import SegDataSample
from torch import nn

from mmseg_cmdl.models import LeftRightTTAModel

PAIRS = [(1, 2), (4, 3)]
SWAPPED = [0, 2, 1, 4, 3, 5]


class Segmentor(nn.Module):
    num_classes = out_channels = 6

    def test_step(self, data):
        raise AssertionError('only what it predicted is merged here')


def _sample(logits, direction):
    sample = SegDataSample(
        metainfo=dict(flip=direction is not None, flip_direction=direction, img_path='one.png')
    )
    sample.seg_logits = PixelData(data=logits)
    return sample


@pytest.mark.parametrize('direction', ['horizontal', 'diagonal', 'vertical'])
def test_a_view_that_mirrors_left_and_right_is_swapped_back(direction):
    torch.manual_seed(0)
    first, second = torch.randn(2, 6, 5, 4)
    # what is predicted of the mirrored image calls left right
    mirrored = second if direction == 'vertical' else second[SWAPPED]
    views = [[_sample(first, None), _sample(mirrored, direction)]]
    expected = (first.softmax(0) + second.softmax(0)).argmax(0)[None]
    module = Segmentor()
    plain = SegTTAModel(module).merge_preds(copy.deepcopy(views))[0].pred_sem_seg.data
    ours = LeftRightTTAModel(module, swap_seg_labels=PAIRS).merge_preds(views)[0].pred_sem_seg.data
    assert torch.equal(ours, expected)
    assert torch.equal(plain, expected) == (direction == 'vertical')
