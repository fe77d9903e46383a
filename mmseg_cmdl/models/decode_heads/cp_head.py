"""CPHead: context prior, which gathers the pixels of the same class and those of others (CPNet).

Source: Yu et al., Context Prior for Scene Segmentation, CVPR 2020, section 3. One of the heads that
CAR is added to (CAR, table 2).
"""

from functools import partial
from typing import Any, Dict, List, Optional, Tuple, Union

import torch
from mmcv.cnn import ConvModule, build_norm_layer
from mmengine.model import kaiming_init
from mmseg.models.utils import resize
from mmseg.utils import ConfigType, SampleList
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from ...registry import MODELS
from ...utils import check_finite, labels_at_feature_size, warn_without_effect
from .cascade_stage import CascadeStage, at_any_stage
from .label_check import LABELS_ARE_CHECKED, batch_labels, num_labels


class FullySeparableAggregation(nn.Module):
    """Local context for the prior: 3x3 conv, then k x 1 and 1 x k depthwise, both orders summed.

    The depthwise convs start as ConvModule's do, and as in the released code.

    Args:
        in_channels (int): Channels of the input.
        channels (int): Channels of the result.
        kernel_size (int): k, odd.
        **conv_options: `conv_cfg`, `norm_cfg` and `act_cfg`.
    """

    def __init__(self, in_channels: int, channels: int, kernel_size: int, **conv_options: Any):
        super().__init__()
        self.reduction = ConvModule(in_channels, channels, 3, padding=1, **conv_options)
        tall, wide = (
            partial(
                nn.Conv2d,
                channels,
                channels,
                size,
                padding=(size[0] // 2, size[1] // 2),
                groups=channels,
            )
            for size in ((kernel_size, 1), (1, kernel_size))
        )
        self.tall_wide, self.wide_tall = (
            nn.Sequential(*(conv() for conv in order)) for order in ((tall, wide), (wide, tall))
        )
        for conv in (*self.tall_wide, *self.wide_tall):
            kaiming_init(conv)
        norm_cfg = conv_options.get('norm_cfg')
        self.norm = build_norm_layer(norm_cfg, channels)[1] if norm_cfg else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, h, w] to [B, channels, h, w]."""
        x = self.reduction(x)
        return self.norm(self.tall_wide(x) + self.wide_tall(x)).relu()


@MODELS.register_module()
class CPHead(CascadeStage):
    """Context prior network (CPNet).

    From each pixel, a 1x1 conv predicts with which of the N = h * w pixels it shares its class: the
    prior P [N, N]. ``P`` and ``1 - P`` gather the aggregated features of the same class and of
    others, and both join the backbone's map for the classifier. The conv has an output for each
    pixel, so maps of another size are brought to `prior_size`, bilinearly, as in CAR's code, and
    the logits have that size. To predict large images at the resolution of the training crops, use
    ``test_cfg=dict(mode='slide', crop_size=CROP, stride=STRIDE)``.

    Args:
        prior_size (int | tuple[int, int]): (h, w) of the feature map: the training crop over the
            backbone's stride, rounded up.
        prior_channels (int): Channels of the aggregated features. Defaults to 512.
        kernel_size (int): k of :class:`FullySeparableAggregation`. Defaults to 11.
        loss_prior (dict): Loss of the prior. Defaults to `dict(type='AffinityLoss')`.
        **kwargs: Options of :class:`mmseg.models.decode_heads.decode_head.BaseDecodeHead`.

    Raises:
        ValueError: An even `kernel_size`, or a label that is out of range.
    """

    def __init__(
        self,
        prior_size: Union[int, Tuple[int, int]],
        prior_channels: int = 512,
        kernel_size: int = 11,
        loss_prior: dict = dict(type='AffinityLoss'),
        check_labels: Optional[str] = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_finite(self, kernel_size=kernel_size, dropout_ratio=self.dropout_ratio)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f'CPHead: kernel_size must be odd, got {kernel_size}')
        self.prior_size = tuple(_pair(prior_size))
        warn_without_effect(self, LABELS_ARE_CHECKED, check_labels=check_labels)
        options = dict(conv_cfg=self.conv_cfg, norm_cfg=self.norm_cfg, act_cfg=self.act_cfg)
        self.aggregation = FullySeparableAggregation(
            self.in_channels, prior_channels, kernel_size, **options
        )
        num_pixels = self.prior_size[0] * self.prior_size[1]
        self.prior_conv = ConvModule(prior_channels, num_pixels, 1, **{**options, 'act_cfg': None})
        self.intra_conv = ConvModule(prior_channels, prior_channels, 1, **options)
        self.inter_conv = ConvModule(prior_channels, prior_channels, 1, **options)
        self.bottleneck = ConvModule(
            self.in_channels + 2 * prior_channels, self.channels, 3, padding=1, **options
        )
        self.loss_prior = MODELS.build(loss_prior)

    def forward_features(self, inputs: List[Tensor]) -> Tuple[Tensor, Tensor]:
        """What :meth:`cls_seg` classifies, and the prior.

        Args:
            inputs (list[Tensor]): Feature maps of the backbone.

        Returns:
            tuple[Tensor]: ``[B, C, *prior_size]``, and the logits [B, N, N] of the prior, row j of
            pixel j.
        """
        x = resize(
            self._transform_inputs(inputs),
            size=self.prior_size,
            mode='bilinear',
            align_corners=self.align_corners,
        )
        values = self.aggregation(x)
        logits = self.prior_conv(values).flatten(2).transpose(1, 2)
        pixels = values.flatten(2).transpose(1, 2)  # [B, N, C']
        intra = logits.sigmoid() @ pixels / pixels.shape[1]
        # a product of its own: sum V - P V cancels where P is near 1, in low precision above all
        inter = (-logits).sigmoid() @ pixels / pixels.shape[1]
        contexts = (
            conv(context.transpose(1, 2).reshape_as(values))
            for conv, context in ((self.intra_conv, intra), (self.inter_conv, inter))
        )
        return self.bottleneck(torch.cat([x, *contexts], dim=1)), logits

    def forward(self, inputs: List[Tensor], prev_output: Optional[Tensor] = None) -> Tensor:
        """Feature maps of the backbone to logits ``[B, K, *prior_size]``."""
        return self.cls_seg(self.forward_features(inputs)[0])

    @at_any_stage
    def loss(
        self, inputs: List[Tensor], batch_data_samples: SampleList, train_cfg: ConfigType
    ) -> Dict[str, Tensor]:
        """As in the base class, and `loss_prior`."""
        labels = batch_labels(batch_data_samples, num_labels(self), self.ignore_index)
        features, prior = self.forward_features(inputs)
        losses = self.loss_by_feat(self.cls_seg(features), batch_data_samples)
        small = labels_at_feature_size(labels, self.prior_size).flatten(1)
        losses[self.loss_prior.loss_name] = self.loss_prior(prior, small, self.ignore_index)
        return losses
