"""DGCWHead: distance guided channel weighting at a quarter of the feature size (DGCW)."""

import inspect
from typing import Any, List, Optional, Union

import torch
from mmcv.cnn import ConvModule
from mmseg.models.utils import resize
from torch import Tensor, nn

from ...registry import MODELS
from ...utils import (
    check_counts,
    check_finite,
    check_flags,
    registered_class,
    warn_without_effect,
)
from .cascade_stage import CascadeStage
from .foreign_options import place_options
from .label_check import LABELS_ARE_CHECKED
from .loss_check import check_losses
from .single_image_context import SingleImageContext

# Of each branch of PPM and ASPP (4.1).
_CONTEXT_CHANNELS = 512


def _build_layer(layer: dict, channels: int) -> nn.Module:
    """Builds a layer whose channels are called `channels` or, in mmcv, `in_channels`."""
    cls = registered_class(layer)
    names = () if cls is None else inspect.signature(cls).parameters
    return MODELS.build(
        {'in_channels' if 'in_channels' in names else 'channels': channels, **layer}
    )


@MODELS.register_module()
class DGCWHead(CascadeStage):
    """Distance guided channel weighting network (DGCW, 3.1).

    X, the feature map or what `context` makes of it, is reduced to `channels` by a 1x1 conv,
    downsampled, related by `layer`, upsampled again, joined with X and classified, so that the
    logits are as fine as those of the head whose place this one takes. In the paper's form,
    `concat_features=False`, the related map itself is classified. Its loss is L_f (DGCW eq. 7).

    Args:
        in_channels (int | list[int]): Channels of the selected feature map. Lists here and in
            `in_index`, as in configs of UPerHead, are for a `context` of several maps.
        channels (int): C, channels that X is reduced to, and that are classified. Defaults to 128,
            as in the paper; cost grows with its square.
        num_classes (int): K, the number of classes.
        layer (dict): Any registered module [B, C, h, w] to the same; its `channels` (or
            `in_channels`) is filled in. Defaults to `dict(type='ChannelWeighting')`. The contexts
            of DGCW, table 2: 'GlobalPoolingContext' and 'SqueezeExcitation', both with
            `downsample=1`, `dict(type='NonLocal2d', reduction=1)` with `downsample=1` (NL-H) or 4
            (NL-D); the convs of DGCW, table 1: 'PointwiseConvs'.
        downsample (int): How many times smaller than X the map is that `layer` sees, in height
            and in width; rounded up, so a 769 crop at stride 8, 97x97, gives 25x25, whose pixels
            are every fourth one with `align_corners=True`. Defaults to 4.
        context (dict, optional): Any registered decode head that ends in `conv_seg`, other than a
            cascade, without its classifier; X is its last feature map. `dict(type='PSPHead')` for
            PPM, `dict(type='ASPPHead', dilations=(1, 12, 24, 36))` for ASPP. It inherits what this
            head has and it doesn't set, `channels` aside, which defaults to 512.
        concat_features (bool): Upsample the related map to X, concatenate the two, 3x3 conv, and
            classify that, at full resolution. The paper's text reads as False: logits `downsample`
            times coarser than X. Defaults to True.
        **kwargs: Options of :class:`mmseg.models.decode_heads.decode_head.BaseDecodeHead`.

    Raises:
        ValueError: Options that don't fit together, or a label that is out of range.
    """

    def __init__(
        self,
        in_channels: Union[int, List[int], None] = None,
        channels: int = 128,
        *,
        num_classes: Optional[int] = None,
        layer: dict = dict(type='ChannelWeighting'),
        downsample: int = 4,
        context: Optional[dict] = None,
        concat_features: bool = True,
        check_labels: Optional[str] = None,
        **kwargs: Any,
    ):
        in_channels, kwargs, context = place_options(
            type(self).__name__,
            in_channels,
            kwargs,
            context,
            stages=False,
            channels=channels,
            num_classes=num_classes,
        )
        super().__init__(in_channels, channels, num_classes=num_classes, **kwargs)
        check_finite(self, dropout_ratio=self.dropout_ratio)
        check_losses(self, 'loss_decode', self.loss_decode)
        check_counts(self, downsample=downsample)
        check_flags(self, concat_features=concat_features)
        self.downsample = downsample
        warn_without_effect(self, LABELS_ARE_CHECKED, check_labels=check_labels)
        conv_options = dict(conv_cfg=self.conv_cfg, norm_cfg=self.norm_cfg, act_cfg=self.act_cfg)

        self.context, width = None, self.in_channels
        if context is not None:
            self.context = SingleImageContext(context, self, in_channels, _CONTEXT_CHANNELS)
            width = self.context.channels
        self.reduction = ConvModule(width, self.channels, 1, **conv_options)
        self.layer = _build_layer(layer, self.channels)
        self.fusion = None
        if concat_features:
            self.fusion = ConvModule(
                width + self.channels, self.channels, 3, padding=1, **conv_options
            )

    def forward_features(self, inputs: List[Tensor]) -> Tensor:
        """What :meth:`cls_seg` classifies.

        Args:
            inputs (list[Tensor]): Feature maps of the backbone.

        Returns:
            Tensor: [B, C, h, w], of the size of X; without `concat_features` [B, C, h', w'],
            `downsample` times smaller.
        """
        if self.context is None:
            x = self._transform_inputs(inputs)
        else:
            x = self.context(inputs, None)
        related = self.reduction(x)
        if self.downsample > 1:
            size = [(side + self.downsample - 1) // self.downsample for side in x.shape[2:]]
            related = self._resize(related, size)
        related = self.layer(related)
        if self.fusion is not None:
            related = self.fusion(torch.cat([x, self._resize(related, x.shape[2:])], dim=1))
        return related

    # MMSegmentation's name, by which K-Net asks its kernel_generate_head
    _forward_feature = forward_features

    def _resize(self, x: Tensor, size: Any) -> Tensor:
        return resize(x, size, mode='bilinear', align_corners=self.align_corners, warning=False)

    def forward(self, inputs: List[Tensor], prev_output: Optional[Tensor] = None) -> Tensor:
        """Feature maps of the backbone to logits [B, K, h', w']."""
        return self.cls_seg(self.forward_features(inputs))
