"""Context prior head (CPNet): pixels read those of their own class and the others apart.

Source: "Context Prior for Scene Segmentation" (CVPR 2020), section 3. Written from its equations,
which its reviews quote, not from its code.
"""

from typing import Dict, List, Tuple

import torch
from mmcv.cnn import ConvModule, build_activation_layer, build_norm_layer
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from mmseg.utils import ConfigType, SampleList
from torch import Tensor, nn

from ...utils import labels_at_feature_size


class Aggregation(nn.Module):
    """Sum of two asymmetric fully separable convolutions, depthwise k x 1 then 1 x k and the other
    way round; norm, activation.

    Args:
        channels (int): C, in and out.
        kernel_size (int): k, odd.
        norm_cfg (dict): Config of the norm layer.
        act_cfg (dict): Config of the activation.
    """

    def __init__(self, channels: int, kernel_size: int, norm_cfg: dict, act_cfg: dict):
        super().__init__()
        tall = dict(kernel_size=(kernel_size, 1), padding=(kernel_size // 2, 0))
        wide = dict(kernel_size=(1, kernel_size), padding=(0, kernel_size // 2))
        self.branches = nn.ModuleList(
            nn.Sequential(
                *(nn.Conv2d(channels, channels, groups=channels, bias=False, **c) for c in order)
            )
            for order in ((tall, wide), (wide, tall))
        )
        self.norm = build_norm_layer(norm_cfg, channels)[1]
        self.activate = build_activation_layer(act_cfg)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the same."""
        return self.activate(self.norm(sum(branch(x) for branch in self.branches)))


@MODELS.register_module()
class CPHead(BaseDecodeHead):
    """Decode head with a context prior and its affinity loss.

    X is reduced by a 3x3 ConvModule and aggregated to X~ [n, C]. A 1x1 conv, norm and sigmoid make
    the prior P [n, n]: p_ji, whether pixel i is of the class of pixel j. P X~ is the context of the
    own class, (1 - P) X~ that of the others; a 3x3 ConvModule on X and both is classified.

    NOTE: not in the paper: the prior has n output channels, so it knows one map size, `prior_size`;
    X~ is resized to it bilinearly and both contexts back, which changes nothing at that size. Both
    contexts are means over the n pixels instead of sums, which the norm behind them would take out
    anyway.

    Args:
        prior_size (tuple[int, int]): Feature size (h, w) of a training crop; n = h * w.
        kernel_size (int): k of the aggregation, odd. Defaults to 11.
        loss_affinity (dict): Config of the affinity loss.
        **kwargs: Options of :class:`mmseg.models.decode_heads.decode_head.BaseDecodeHead`.

    Raises:
        ValueError: A `prior_size` that is no pair of positive integers, an even `kernel_size`.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        prior_size: Tuple[int, int],
        kernel_size: int = 11,
        loss_affinity: dict = dict(type='AffinityLoss'),
        **kwargs,
    ):
        super().__init__(in_channels, channels, **kwargs)
        size = tuple(prior_size) if isinstance(prior_size, (list, tuple)) else ()
        if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
            raise ValueError(
                'CPHead: prior_size must be the size (h, w) of the feature map of a training crop, '
                f'two positive integers, got {prior_size!r}'
            )
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f'CPHead: kernel_size must be odd and positive, got {kernel_size}')
        self.prior_size = size
        options = dict(conv_cfg=self.conv_cfg, norm_cfg=self.norm_cfg, act_cfg=self.act_cfg)
        self.reduction = ConvModule(self.in_channels, self.channels, 3, padding=1, **options)
        self.aggregation = Aggregation(
            self.channels, kernel_size, self.norm_cfg or dict(type='BN'), self.act_cfg
        )
        self.prior = ConvModule(
            self.channels,
            size[0] * size[1],
            1,
            conv_cfg=self.conv_cfg,
            norm_cfg=self.norm_cfg,
            act_cfg=None,
        )
        self.bottleneck = ConvModule(
            self.in_channels + 2 * self.channels, self.channels, 3, padding=1, **options
        )
        self.affinity = MODELS.build(loss_affinity)

    def _resize(self, x: Tensor, size) -> Tensor:
        return resize(x, size, mode='bilinear', align_corners=self.align_corners, warning=False)

    def forward_features(self, inputs: List[Tensor]) -> Tuple[Tensor, Tensor]:
        """
        Args:
            inputs (list[Tensor]): Feature maps of the backbone.

        Returns:
            tuple[Tensor, Tensor]: What :meth:`cls_seg` classifies [B, channels, h, w], and the
            logits of the prior [B, n, n], row j what is said of pixel j.
        """
        x = self._transform_inputs(inputs)
        aggregated = self._resize(self.aggregation(self.reduction(x)), self.prior_size)
        logits = self.prior(aggregated).flatten(2).transpose(1, 2)
        prior = logits.sigmoid()
        pixels = aggregated.flatten(2).transpose(1, 2)
        own = prior @ pixels / pixels.shape[1]
        others = pixels.mean(dim=1, keepdim=True) - own
        contexts = (
            self._resize(context.transpose(1, 2).unflatten(2, self.prior_size), x.shape[2:])
            for context in (own, others)
        )
        return self.bottleneck(torch.cat([x, *contexts], dim=1)), logits

    def forward(self, inputs: List[Tensor]) -> Tensor:
        """Feature maps of the backbone to logits [B, K, h, w]."""
        return self.cls_seg(self.forward_features(inputs)[0])

    def loss(
        self, inputs: List[Tensor], batch_data_samples: SampleList, train_cfg: ConfigType
    ) -> Dict[str, Tensor]:
        """Losses of the logits, and the affinity loss of the prior.

        Returns:
            dict[str, Tensor]: By name.
        """
        features, prior = self.forward_features(inputs)
        losses = self.loss_by_feat(self.cls_seg(features), batch_data_samples)
        labels = self._stack_batch_gt(batch_data_samples).squeeze(1)
        labels = labels_at_feature_size(labels, self.prior_size).flatten(1)
        ignore_index = -1 if self.ignore_index is None else self.ignore_index
        losses[self.affinity.loss_name] = self.affinity(
            prior, labels, self.num_classes, ignore_index
        )
        return losses
