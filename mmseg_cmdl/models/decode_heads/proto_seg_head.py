"""ProtoSegHead: a pixel's class is that of the prototype it is nearest to (ProtoSeg)."""

from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmseg.utils import ConfigType, SampleList
from torch import Tensor, nn

from ...registry import MODELS
from ...utils import (
    as_list,
    at_least_float32,
    check_choice,
    check_finite,
    class_rows,
    labels_at_feature_size,
    layer_norm,
)
from ..losses import PixelPrototypeContrastLoss, PixelPrototypeDistanceLoss
from ..memory import DistributionBank
from .cascade_stage import at_any_stage
from .foreign_options import place_options
from .label_check import check_one_logit_a_class
from .loss_check import check_losses, check_losses_of_similarity
from .memory_head import MemoryHead
from .single_image_context import SingleImageContext


@MODELS.register_module()
class ProtoSegHead(MemoryHead):
    """Segmentation by nearest prototypes (ProtoSeg, CVPR 2022).

    From the feature map that `in_index` selects, or from a `context`: pixel representations (3x3
    conv), embeddings (two 1x1 convs, l2, LayerNorm, l2), and as score of a class the largest cosine
    with its N prototypes; a LayerNorm over the K scores of a pixel gives the logits. There is no
    classifier to learn: the prototypes are a :class:`DistributionBank`, moved by the pixels that
    are classified right.

    Source: the released code of ProtoSeg; the paper's text was not at hand.

    Args:
        in_channels (int | list[int]): Channels of the selected feature map; lists here and in
            `in_index` are for a `context` of several maps, or for `input_transform`.
        channels (int): C, channels inside.
        num_classes (int): K, the number of classes.
        bank (dict): Config of a :class:`DistributionBank`; `num_classes` is filled in, and where
            they are left out `num_distributions` (10) and `channels` (Z; C).
        context (dict, optional): Any registered decode head that ends in `conv_seg`; the 3x3 conv
            then takes its last feature map instead of the backbone's. Defaults to None.
        loss_prototype (dict | list[dict], optional): Losses that pull pixels to their prototypes,
            each called as `loss(similarity [B, h, w, K, N], targets [B, h, w])`; None for none.
            Defaults to contrast (0.01) and distance (0.001).
        norm_axis (str): Axis of the first l2 norm: 'channel', or 'released' for weights of the
            released code, which normalises along the width of the feature map, so that what it
            predicts depends on the width of the image. Defaults to 'channel'.
        **kwargs: Options of :class:`mmseg.models.decode_heads.decode_head.BaseDecodeHead`.

    `conv_seg`, what pixel representations enter, is the first conv of the embedding.

    :meth:`loss` also logs `acc_distribution`, the percentage of labelled pixels that are classified
    right at feature size, and `stat_left_out_pixels`, the number of labelled pixels whose embedding
    isn't finite and was kept from the bank. Both count the pixels of all ranks.

    Raises:
        ValueError: Options that don't fit together, or a label that is out of range.
    """

    bank: DistributionBank
    training_parts = (*MemoryHead.training_parts, 'bank')
    embedding_layers = ('bottleneck', 'context', 'conv_seg', 'embedding_conv', 'embedding_norm')

    def __init__(
        self,
        in_channels: Union[int, List[int], None] = None,
        channels: Optional[int] = None,
        *,
        num_classes: Optional[int] = None,
        bank: dict = dict(type='DistributionBank', num_distributions=10),
        context: Optional[dict] = None,
        loss_prototype: Union[dict, Sequence[dict], None] = (
            dict(type='PixelPrototypeContrastLoss', loss_weight=0.01),
            dict(type='PixelPrototypeDistanceLoss', loss_weight=0.001),
        ),
        norm_axis: str = 'channel',
        **kwargs: Any,
    ):
        in_channels, kwargs, context = place_options(
            'ProtoSegHead',
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
        check_one_logit_a_class(self)
        check_choice(self, ('channel', 'released'), norm_axis=norm_axis)
        self.norm_axis = norm_axis
        self.context = None
        if context is not None:
            self.context = SingleImageContext(context, self, in_channels, channels)
        self.bank = self._build_bank(
            bank, DistributionBank, num_distributions=10, channels=self.channels
        )
        width = self.bank.channels
        self.bottleneck = ConvModule(
            self.in_channels if self.context is None else self.context.channels,
            channels,
            3,
            padding=1,
            conv_cfg=self.conv_cfg,
            norm_cfg=self.norm_cfg,
            act_cfg=self.act_cfg,
        )
        self.conv_seg = nn.Conv2d(channels, channels, 1)
        # by default none: that of the base class starts a classifier near 0
        self.init_cfg = kwargs.get('init_cfg')
        self.embedding_conv = nn.Conv2d(channels, width, 1)
        self.embedding_norm = nn.LayerNorm(width)
        self.score_norm = nn.LayerNorm(num_classes)
        self.consistency = self._build_consistency(
            [MODELS.build(loss) for loss in as_list(loss_prototype)]
        )
        kinds = PixelPrototypeContrastLoss, PixelPrototypeDistanceLoss
        check_losses_of_similarity(self, 'loss_prototype', self.consistency.losses, kinds)

    def pixel_features(self, inputs: List[Tensor]) -> Tensor:
        """R [B, C, h, w]."""
        features = self._transform_inputs(inputs) if self.context is None else self.context(inputs)
        return self.bottleneck(features)

    def embed(self, pixels: Tensor) -> Tensor:
        """R [B, C, h, w] to unit vectors [B, h, w, Z], at least float32 whatever autocast says."""
        if self.dropout is not None:
            pixels = self.dropout(pixels)
        embeddings = self.embedding_conv(F.relu(self.conv_seg(pixels))).permute(0, 2, 3, 1)
        with torch.autocast(embeddings.device.type, enabled=False):
            axis = -1 if self.norm_axis == 'channel' else 2
            embeddings = F.normalize(at_least_float32(embeddings), dim=axis)
            return F.normalize(layer_norm(embeddings, self.embedding_norm), dim=-1)

    def classify(self, similarity: Tensor) -> Tensor:
        """Cosines with all prototypes [B, h, w, K, N] to logits [B, K, h, w]."""
        with torch.autocast(similarity.device.type, enabled=False):
            scores = similarity.amax(dim=-1)
            return layer_norm(scores, self.score_norm).permute(0, 3, 1, 2)

    def cls_seg(self, feat: Tensor) -> Tensor:
        """R [B, C, h, w] to logits [B, K, h, w]."""
        embeddings = self.embed(feat)
        if self.folded:
            similarity = self.prototypes(embeddings).unflatten(-1, (self.num_classes, -1))
        else:
            similarity = self.bank.similarity(embeddings)
        return self.classify(similarity)

    def forward(self, inputs: List[Tensor], prev_output: Optional[Tensor] = None) -> Tensor:
        """Feature maps of the backbone to logits [B, K, h, w]."""
        return self.cls_seg(self.pixel_features(inputs))

    def predict_and_embed(self, inputs: List[Tensor]) -> Tuple[Tensor, Tensor]:
        """See the base class."""
        embeddings = self.embed(self.pixel_features(inputs))
        return self.classify(self.bank.similarity(embeddings)), embeddings

    @at_any_stage
    def loss(
        self, inputs: List[Tensor], batch_data_samples: SampleList, train_cfg: ConfigType
    ) -> Dict[str, Tensor]:
        """See the base class. In training, every rank first takes rank 0's bank, once.

        Returns:
            dict[str, Tensor]: `loss_*` and `acc_seg` of the logits, and what
            :meth:`memory_losses` gives.
        """
        labels = self.begin_step(batch_data_samples)
        embeddings = self.embed(self.pixel_features(inputs))
        similarity = self.bank.similarity(embeddings)
        logits = self.classify(similarity)
        losses = self.loss_by_feat(logits, batch_data_samples)
        losses.update(self.memory_losses(embeddings, similarity, logits, labels))
        return losses

    def memory_losses(
        self, embeddings: Tensor, similarity: Tensor, logits: Tensor, labels: Tensor
    ) -> Dict[str, Tensor]:
        """The prototype losses, and then the update of the bank by the hook.

        Args:
            embeddings (Tensor): [B, h, w, Z].
            similarity (Tensor): [B, h, w, K, N].
            logits (Tensor): [B, K, h, w].
            labels (Tensor): [B, H, W].

        Returns:
            dict[str, Tensor]: Losses, and scalars to log under names without 'loss'.
        """
        labels = labels_at_feature_size(labels, logits.shape[2:])
        classes = class_rows(labels, self.num_classes, self.ignore_index)
        # the balanced assignment, of which both the losses and the update need the largest entry
        assigned = self.bank.assign(similarity.flatten(0, 2), classes.flatten()).view_as(classes)
        known = classes < self.num_classes
        targets = torch.where(known, classes * self.bank.num_distributions + assigned, -1)
        batch = dict(
            embeddings=embeddings,
            similarity=similarity,
            classes=classes,
            correct=logits.detach().argmax(dim=1) == classes,
            assigned=assigned,
        )
        return self.consistency(batch, similarity, targets)

    def update_bank(
        self,
        embeddings: Tensor,
        similarity: Tensor,
        classes: Tensor,
        correct: Tensor,
        assigned: Tensor,
    ) -> Dict[str, Tensor]:
        """Moves the bank by the pixels that are classified right.

        Args:
            embeddings (Tensor): [B, h, w, Z].
            similarity (Tensor): [B, h, w, K, N].
            classes (Tensor): int64 [B, h, w] in 0..K, K for pixels without a class.
            correct (Tensor): Bool [B, h, w].
            assigned (Tensor): int64 [B, h, w], what :meth:`DistributionBank.assign` gives.

        Returns:
            dict[str, Tensor]: `acc_distribution` and `stat_left_out_pixels`; see the class.
        """
        counted = self.bank.update_(
            embeddings.flatten(0, 2),
            classes.flatten(),
            correct.flatten(),
            ignore_index=self.num_classes,
            similarity=similarity.flatten(0, 2),
            assigned=assigned.flatten(),
        )
        if counted is None:
            return {}
        return dict(
            acc_distribution=100 * counted.correct / counted.labelled.clamp(min=1),
            stat_left_out_pixels=counted.left_out,
        )

    def fold_(self) -> 'ProtoSegHead':
        """Turns this into a head for inference only, which predicts the same; no way back.

        The prototypes become the weight of a linear layer, and what only training needs goes.
        """
        if not self.folded:
            self.eval()
            rows = self.bank.class_vectors().flatten(0, 1)
            self.prototypes = nn.Linear(rows.shape[1], len(rows), bias=False).to(rows)
            self.prototypes.weight = nn.Parameter(rows.clone(), requires_grad=False)
            self.folded = True
            for name in self.training_parts:
                setattr(self, name, None)
        return self
