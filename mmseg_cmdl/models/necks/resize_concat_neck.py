"""ResizeConcatNeck: the maps of a high-resolution backbone as one."""

from typing import List, Optional, Sequence, Tuple

import torch
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmseg.models.utils import resize
from torch import Tensor

from ...registry import MODELS
from ...utils import check_finite, check_flags


@MODELS.register_module()
class ResizeConcatNeck(BaseModule):
    """All maps of a backbone at the size of the first, side by side, optionally downsampled.

    What `input_transform='resize_concat'` does in each head, done once, and the strided
    convolution that the released MCIBI on HRNet-W48 has after it for Cityscapes and LIP.

    Args:
        in_channels (Sequence[int]): Channels of the maps.
        stride (int): More than 1 adds a 3x3 ConvModule of this stride, from the sum of
            `in_channels` to as many channels. Defaults to 1.
        align_corners (bool): Whether the bilinear resizing aligns corners. Defaults to False.
        conv_cfg (dict, optional): Config of the conv in the ConvModule. Defaults to None.
        norm_cfg (dict, optional): Config of its norm. Defaults to None.
        act_cfg (dict): Config of its activation. Defaults to ReLU.
        init_cfg (dict, optional): As in the base class. Defaults to None.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        stride: int = 1,
        align_corners: bool = False,
        conv_cfg: Optional[dict] = None,
        norm_cfg: Optional[dict] = None,
        act_cfg: dict = dict(type='ReLU'),
        init_cfg: Optional[dict] = None,
    ):
        super().__init__(init_cfg)
        check_finite(self, stride=stride)
        check_flags(self, align_corners=align_corners)
        self.in_channels = list(in_channels)
        self.stride = stride
        self.align_corners = align_corners
        self.act_cfg = act_cfg
        self.downsample = None
        if stride > 1:
            channels = sum(self.in_channels)
            self.downsample = ConvModule(
                channels,
                channels,
                3,
                stride=stride,
                padding=1,
                conv_cfg=conv_cfg,
                norm_cfg=norm_cfg,
                act_cfg=act_cfg,
            )

    def forward(self, inputs: List[Tensor]) -> Tuple[Tensor]:
        """
        Args:
            inputs (list[Tensor]): [B, C_i, h_i, w_i].

        Returns:
            tuple[Tensor]: One map, [B, sum of C_i, ceil(h_0 / stride), ceil(w_0 / stride)].

        Raises:
            ValueError: There are more or fewer maps than `in_channels` has.
        """
        if len(inputs) != len(self.in_channels):
            raise ValueError(
                f'ResizeConcatNeck: in_channels={self.in_channels} is for {len(self.in_channels)} '
                f'maps, and the backbone gives {len(inputs)}; set its out_indices, or in_channels'
            )
        size = inputs[0].shape[2:]
        maps = [resize(x, size, mode='bilinear', align_corners=self.align_corners) for x in inputs]
        joined = torch.cat(maps, dim=1)
        return (joined if self.downsample is None else self.downsample(joined),)
