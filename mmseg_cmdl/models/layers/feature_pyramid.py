"""Top-down pathway from one map to finer ones, with the map itself as its top."""

from typing import List, Optional, Sequence

import torch
from mmcv.cnn import ConvModule
from mmseg.models.utils import resize
from torch import Tensor, nn


class FeaturePyramid(nn.Module):
    """Brings a map to the size of the finest of the maps before it, joined with all of them.

    Each finer map is brought to as many channels as the top has by a 1x1 conv; from the top
    downwards, each is added the one above it, resized; each but the top then goes through a 3x3
    conv. All are resized to the finest and joined, the finest first and the top last.

    Source: the released code of MCIBI++ on UPerNet.

    Args:
        in_channels (Sequence[int]): Channels of the finer maps, the finest first.
        top_channels (int): Channels of the top.
        out_channels (int): Channels of what each finer map becomes.
        align_corners (bool): Whether the resizing aligns corners. Defaults to False.
        conv_cfg, norm_cfg, act_cfg (dict, optional): Configs of the convs.

    Attributes:
        channels (int): Channels of the result.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        top_channels: int,
        out_channels: int,
        align_corners: bool = False,
        conv_cfg: Optional[dict] = None,
        norm_cfg: Optional[dict] = None,
        act_cfg: Optional[dict] = dict(type='ReLU'),
    ):
        super().__init__()
        options = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=act_cfg)
        self.lateral_convs = nn.ModuleList(
            ConvModule(channels, top_channels, 1, **options) for channels in in_channels
        )
        self.fpn_convs = nn.ModuleList(
            ConvModule(top_channels, out_channels, 3, padding=1, **options) for _ in in_channels
        )
        self.align_corners = align_corners
        self.channels = len(in_channels) * out_channels + top_channels

    def _resize(self, x: Tensor, like: Tensor) -> Tensor:
        return resize(x, like.shape[2:], mode='bilinear', align_corners=self.align_corners)

    def forward(self, maps: List[Tensor], top: Tensor) -> Tensor:
        """
        Args:
            maps (list[Tensor]): The finer maps, the finest first.
            top (Tensor): [B, top_channels, h, w].

        Returns:
            Tensor: [B, channels, H, W], at the size of the finest map.
        """
        levels = [conv(x) for conv, x in zip(self.lateral_convs, maps)] + [top]
        for below in range(len(levels) - 2, -1, -1):
            levels[below] = levels[below] + self._resize(levels[below + 1], levels[below])
        out = [conv(level) for conv, level in zip(self.fpn_convs, levels)] + [top]
        return torch.cat([self._resize(level, out[0]) for level in out], dim=1)
