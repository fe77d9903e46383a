"""HRNet that enlarges its coarser maps with their corners aligned."""

from typing import Any

from mmseg.models.backbones import HRNet
from mmseg.models.utils import Upsample

from ...registry import MODELS


@MODELS.register_module()
class CornerAlignedHRNet(HRNet):
    """HRNet whose branches are resized with `align_corners=True` before they are added.

    So is the network of the released ProtoSeg; it has no parameter that shows it. For anything else
    use HRNet. Images have a multiple of 32 pixels on each side, or the enlarged maps are resized
    once more, as HRNet does.

    Args:
        **kwargs: Options of :class:`mmseg.models.backbones.HRNet`. The keys in a checkpoint are the
            same.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        for module in self.modules():
            if isinstance(module, Upsample):
                module.align_corners = True
