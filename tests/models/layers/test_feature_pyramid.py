"""FeaturePyramid against its description, map by map."""

import torch
import torch.nn.functional as F

from mmseg_cmdl.models.layers import FeaturePyramid


def test_levels_are_added_downwards_and_joined_finest_first():
    torch.manual_seed(0)
    pyramid = FeaturePyramid([3, 4], 6, 5, norm_cfg=dict(type='BN')).double().eval()
    assert pyramid.channels == 2 * 5 + 6
    fine, middle = (torch.randn(2, c, *size).double() for c, size in ((3, (12, 10)), (4, (6, 5))))
    top = torch.randn(2, 6, 3, 2).double()

    def enlarge(x, like):
        return F.interpolate(x, like.shape[2:], mode='bilinear', align_corners=False)

    level_1 = pyramid.lateral_convs[1](middle) + enlarge(top, middle)
    level_0 = pyramid.lateral_convs[0](fine) + enlarge(level_1, fine)
    parts = [
        pyramid.fpn_convs[0](level_0),
        enlarge(pyramid.fpn_convs[1](level_1), fine),
        enlarge(top, fine),
    ]
    expected = torch.cat(parts, dim=1)
    torch.testing.assert_close(pyramid([fine, middle], top), expected, rtol=0, atol=1e-12)
