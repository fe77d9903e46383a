"""What TIMMBackbone gives for tf_efficientnet_lite0, for machines on which timm can't be imported.

A config names this module in `custom_imports`, so a dumped copy of it works in any process.
"""

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import nn


@MODELS.register_module()
class TIMMStandIn(BaseModule):
    """Five maps of tf_efficientnet_lite0's channels, at its strides for `output_stride=8`."""

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
