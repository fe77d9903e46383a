"""The contexts that DGCW is compared with (tables 1 and 2), as layers [B, C, h, w] to the same.

All convs have C output channels. The non-local layer of DGCW, table 2, is mmcv's:
``dict(type='NonLocal2d', reduction=1)``.
"""

from typing import Optional

from mmengine.model import BaseModule
from mmseg.models.utils import SELayer
from torch import Tensor, nn

from ...registry import MODELS
from ...utils import check_finite


@MODELS.register_module()
class GlobalPoolingContext(BaseModule):
    """GAP of DGCW, table 2: the mean over all pixels, through a 1x1 conv, added to every pixel.

    The paper says that the conv's result is brought to the size of the map, and leaves open how
    the two meet; they are added, as in DGCW eq. 5.

    Args:
        channels (int): C, the channels of the map.
        init_cfg (dict, optional): Initialization config.
    """

    def __init__(self, channels: int, init_cfg: Optional[dict] = None):
        super().__init__(init_cfg)
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same shape."""
        return x + self.conv(x.mean(dim=(2, 3), keepdim=True))


@MODELS.register_module()
class SqueezeExcitation(SELayer):
    """SE of DGCW, table 2: every channel times a weight that two layers predict from all means.

    MMSegmentation's layer with C channels inside and a plain sigmoid.

    Args:
        channels (int): C, the channels of the map.
        ratio (int): C over the channels inside. Defaults to 1.
    """

    def __init__(self, channels: int, ratio: int = 1):
        check_finite(self, ratio=ratio)
        super().__init__(channels, ratio, act_cfg=(dict(type='ReLU'), dict(type='Sigmoid')))


@MODELS.register_module()
class PointwiseConvs(BaseModule):
    """'conv' of DGCW, table 1: DGCW without its weighting, ``out_i = F_i + g(F_i)``.

    Args:
        channels (int): C, the channels of the map.
        init_cfg (dict, optional): Initialization config.
    """

    def __init__(self, channels: int, init_cfg: Optional[dict] = None):
        super().__init__(init_cfg)
        self.g1 = nn.Conv2d(channels, channels, 1)
        self.g2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same shape."""
        return x + self.g2(self.g1(x).relu())
