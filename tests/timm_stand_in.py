"""What TIMMBackbone and MMPretrain's ConvNeXt give, for machines on which these can't be imported.

A config names this module in `custom_imports`, so a dumped copy of it works in any process.
"""

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import nn


@MODELS.register_module()
class TIMMStandIn(BaseModule):
    """Five maps, by default of tf_efficientnet_lite0's channels, at its strides for stride 8."""

    def __init__(self, channels=(16, 24, 40, 112, 320), strides=(2, 2, 2, 1, 1), init_cfg=None):
        super().__init__(init_cfg)
        inputs = (3, *channels[:-1])
        self.stages = nn.ModuleList(
            ConvModule(i, o, 3, stride=s, padding=1, norm_cfg=dict(type='BN'))
            for i, o, s in zip(inputs, channels, strides)
        )

    def forward(self, x):
        """[B, 3, H, W] to a list of five maps."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


@MODELS.register_module()
class LastMapStandIn(TIMMStandIn):
    """One map at stride 8 of tf_efficientnet_b5's last conv, as TIMMLastMap gives."""

    def __init__(self, channels=(24, 40, 2048), strides=(2, 2, 2), init_cfg=None):
        super().__init__(channels, strides, init_cfg)

    def forward(self, x):
        """[B, 3, H, W] to a list of one map."""
        return super().forward(x)[-1:]


@MODELS.register_module()
class ConvNeXtStandIn(TIMMStandIn):
    """Four maps of ConvNeXt-T's channels at its strides, and its name for what asks for that."""

    def __init__(self, channels=(96, 192, 384, 768), strides=(4, 2, 2, 2), init_cfg=None):
        super().__init__(channels, strides, init_cfg)
