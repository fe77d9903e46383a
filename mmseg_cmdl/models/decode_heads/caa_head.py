"""CAAHead: channelized axial attention with an image-level branch (CAA).

Source: Huang et al., Channelized Axial Attention, AAAI 2022, section 3. One of the heads that CAR
is added to (CAR, table 2).
"""

from typing import Any, List, Optional

import torch
from mmcv.cnn import ConvModule
from torch import Tensor

from ...registry import MODELS
from ...utils import check_finite, check_flags, warn_without_effect
from ..layers.channelized_axial_attention import ChannelizedAxialAttention
from .cascade_stage import CascadeStage
from .label_check import LABELS_ARE_CHECKED


@MODELS.register_module()
class CAAHead(CascadeStage):
    """3x3 conv, channelized axial attention, 1x1 conv; beside it, the mean of the whole image.

    The two join in a 1x1 conv to `channels`, which are classified.

    Args:
        attention_channels (int): Channels of the attention and of the image-level branch. Defaults
            to 512.
        attention (dict): Options of :class:`ChannelizedAxialAttention`.
        image_level (bool): Whether there is an image-level branch. Like those of PSP and ASPP, it
            needs two images per process under BN. Defaults to True.
        **kwargs: Options of :class:`mmseg.models.decode_heads.decode_head.BaseDecodeHead`; the
            paper classifies `channels=256`.

    Raises:
        ValueError: A label that is out of range.
    """

    def __init__(
        self,
        attention_channels: int = 512,
        attention: dict = dict(),
        image_level: bool = True,
        check_labels: Optional[str] = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_finite(self, dropout_ratio=self.dropout_ratio)
        warn_without_effect(self, LABELS_ARE_CHECKED, check_labels=check_labels)
        check_flags(self, image_level=image_level)
        options = dict(conv_cfg=self.conv_cfg, norm_cfg=self.norm_cfg, act_cfg=self.act_cfg)
        self.reduction = ConvModule(self.in_channels, attention_channels, 3, padding=1, **options)
        self.attention = ChannelizedAxialAttention(attention_channels, **{**options, **attention})
        self.out_conv = ConvModule(attention_channels, attention_channels, 1, **options)
        self.image_conv, width = None, attention_channels
        if image_level:
            self.image_conv = ConvModule(self.in_channels, attention_channels, 1, **options)
            width = 2 * attention_channels
        self.bottleneck = ConvModule(width, self.channels, 1, **options)

    def forward_features(self, inputs: List[Tensor]) -> Tensor:
        """Feature maps of the backbone to what is classified, [B, C, h, w]."""
        x = self._transform_inputs(inputs)
        features = [self.out_conv(self.attention(self.reduction(x)))]
        if self.image_conv is not None:
            mean = self.image_conv(x.mean(dim=(2, 3), keepdim=True))
            features.append(mean.expand(-1, -1, *x.shape[2:]))
        return self.bottleneck(torch.cat(features, dim=1))

    # MMSegmentation's name, by which K-Net asks its kernel_generate_head
    _forward_feature = forward_features

    def forward(self, inputs: List[Tensor], prev_output: Optional[Tensor] = None) -> Tensor:
        """Feature maps of the backbone to logits [B, K, h, w]."""
        return self.cls_seg(self.forward_features(inputs))
