"""CornerAlignedHRNet: HRNet with the corners of its branches aligned, and the same keys."""

import torch
import torch.nn.functional as F
from mmseg.models.backbones import HRNet

from mmseg_cmdl.models import CornerAlignedHRNet
from tests.models.backbones.test_linear_stem_hrnet import SMALL


def test_coarser_branches_are_added_with_their_corners_aligned():
    torch.manual_seed(0)
    ours, plain = CornerAlignedHRNet(SMALL).double(), HRNet(SMALL).double()
    for model in (ours, plain):
        model.eval()  # which returns nothing in MMSegmentation
    assert ours.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    module, seen = ours.stage2[0], {}
    module.fuse_layers[0][1][1].register_forward_hook(lambda m, i, out: seen.update(coarse=out))
    module.branches[0].register_forward_hook(lambda m, i, out: seen.update(fine=out))
    module.register_forward_hook(lambda m, i, out: seen.update(fused=out[0].clone()))
    out = ours(x)
    enlarged = F.interpolate(
        seen['coarse'], seen['fine'].shape[2:], mode='bilinear', align_corners=True
    )
    torch.testing.assert_close(seen['fused'], (seen['fine'] + enlarged).relu(), rtol=0, atol=1e-12)
    assert (out[0] - plain(x)[0]).abs().max() > 1e-3
