"""Base of the heads with a dataset-level memory: read the memory, relate, fuse, classify.

Source: MDRL, section 3.1 and eq. 2 to 5; MCIBI, eq. 1 to 5 and 11 to 14.
"""

from typing import Any, Dict, List, Optional, Tuple, Union

import torch
from mmcv.cnn import ConvModule
from mmengine.model import normal_init
from mmseg.models.losses import accuracy
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from mmseg.utils import ConfigType, SampleList
from torch import Tensor, nn

from ...utils import (
    add_loss,
    as_list,
    check_choice,
    check_counts,
    check_finite,
    check_flags,
    labels_at_feature_size,
    warn_without_effect,
)
from ..layers import RelationAttention
from .cascade_stage import at_any_stage
from .foreign_options import place_options
from .label_check import LABELS_ARE_CHECKED, check_one_logit_a_class
from .loss_check import check_losses
from .memory_head import MemoryHead
from .single_image_context import SingleImageContext, brings_a_finer_map


class DatasetContextHead(MemoryHead):
    """What the heads with a memory share.

    From the feature map that `in_index` selects: pixel representations R (3x3 conv), coarse class
    weights (H1 and softmax), memory context R_m (:meth:`read_memory`), relation to R (attention),
    fusion with R and with an optional single-image context, classifier. A subclass builds the
    memory (`bank`) and the losses that train it (`consistency`), and says how the losses are called
    (:meth:`memory_losses`), how a batch moves the bank (:meth:`update_bank`), and what the memory
    gives (:meth:`read_memory`) where that is another than the bank's vote.

    When the bank moves: :class:`MemoryHead`.

    Args:
        in_channels (int | list[int]): Channels of the selected feature map. Lists here and in
            `in_index`, as in configs of UPerHead, are for a `context` of several maps; this head
            takes the last of them.
        channels (int): C, channels inside.
        num_classes (int): K, the number of classes.
        context (dict, optional): Any registered decode head that ends in `conv_seg`. It is built
            without its classifier, sees all feature maps of the backbone, and inherits
            `in_channels`, `in_index`, `channels`, `num_classes`, `norm_cfg`, `align_corners` and
            the like from this head unless it sets them. Defaults to None.
        pixels (str, optional): Where R comes from. 'backbone': the feature map that `in_index`
            selects; a context is related to it (MDRL eq. 2 to 4). 'context': what the context would
            classify, at its size, by a 1x1 conv; there is no second branch then. By default
            'context' where the context is a decoder of several feature maps or brings its map to a
            finer size, as UPerHead, SegformerHead and DepthwiseSeparableASPPHead do, so that the
            logits are as fine as those of that head; otherwise 'backbone'.
        key_stride (int, optional): The memory is averaged over squares of so many pixels before the
            pixels attend to it, since the cost of attention grows with the square of their number.
            Defaults to 8 with `pixels='context'`, otherwise to 1, the papers' form.
        loss_stride (int, optional): What only trains the memory, the coarse loss, the memory's own
            losses and its update, sees every so many-th pixel of a row and of a column, with the
            label nearest to it. Defaults to 4 with `pixels='context'`, otherwise to 1, the papers'
            form: all pixels.
        fusion (str): T in MDRL eq. 4: 'concat' (3x3 conv on [R, R_dl]; 1x1 with
            `pixels='context'`), 'add', or 'weighted_add' (the weight of R_dl at each pixel is
            predicted from both by a 1x1 conv). Defaults to 'concat'.
        transform_channels (int, optional): Channels inside the attentions. Defaults to C // 2, with
            `pixels='context'` to C // 4.
        hard_aggregate (bool): Weigh the memory with the one-hot coarse prediction instead of its
            softmax. Defaults to False.
        loss_coarse (dict | list[dict], optional): Loss of the coarse logits (L_cls, MDRL eq. 16);
            None for none. Defaults to cross entropy with weight 0.4.
        **kwargs: Options of :class:`mmseg.models.decode_heads.decode_head.BaseDecodeHead`.

    Raises:
        ValueError: Options that don't fit together, or a label that is out of range.
    """

    # what `fold_` takes off
    training_parts: Tuple[str, ...] = ('bank', 'consistency', 'loss_decode', 'loss_coarse')

    def __init__(
        self,
        in_channels: Union[int, List[int], None] = None,
        channels: Optional[int] = None,
        *,
        num_classes: Optional[int] = None,
        context: Optional[dict] = None,
        pixels: Optional[str] = None,
        key_stride: Optional[int] = None,
        loss_stride: Optional[int] = None,
        fusion: str = 'concat',
        transform_channels: Optional[int] = None,
        hard_aggregate: bool = False,
        loss_coarse: Union[dict, List[dict], None] = dict(
            type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4
        ),
        check_labels: Optional[str] = None,
        **kwargs: Any,
    ):
        name = type(self).__name__
        if isinstance(fusion, bool):  # that of APCHead or DMHead, in whose place this one stands
            kwargs['fusion'], fusion = fusion, 'concat'
        in_channels, kwargs, context = place_options(
            name, in_channels, kwargs, context, channels=channels, num_classes=num_classes
        )
        super().__init__(in_channels, channels, num_classes=num_classes, **kwargs)
        check_finite(self, dropout_ratio=self.dropout_ratio)
        check_losses(self, 'loss_decode', self.loss_decode)
        check_one_logit_a_class(self)
        check_choice(self, ('concat', 'add', 'weighted_add'), fusion=fusion)
        check_flags(self, hard_aggregate=hard_aggregate)
        self.fusion = fusion
        self.hard_aggregate = hard_aggregate
        warn_without_effect(self, LABELS_ARE_CHECKED, check_labels=check_labels)
        self.conv_options = dict(
            conv_cfg=self.conv_cfg, norm_cfg=self.norm_cfg, act_cfg=self.act_cfg
        )
        if pixels is None:
            finer = context is not None and brings_a_finer_map(context)
            pixels = 'context' if finer else 'backbone'
        if pixels not in ('backbone', 'context') or (pixels == 'context' and context is None):
            raise ValueError(
                f"{name}: pixels must be 'backbone', or 'context' together with a context, got "
                f'{pixels!r}'
            )
        self.pixels = pixels
        # a decoder's map is large
        if transform_channels is None:
            transform_channels = max(1, channels // (4 if pixels == 'context' else 2))
        if key_stride is None:
            key_stride = 8 if pixels == 'context' else 1
        if loss_stride is None:
            loss_stride = 4 if pixels == 'context' else 1
        check_counts(self, loss_stride=loss_stride)
        self.loss_stride = loss_stride
        self.context = None
        if pixels == 'context':
            self.context = SingleImageContext(context, self, in_channels, channels)
            self.bottleneck = ConvModule(self.context.channels, channels, 1, **self.conv_options)
            self.embedding_layers = ('context', *self.embedding_layers)
        else:
            self.bottleneck = ConvModule(
                self.in_channels, channels, 3, padding=1, **self.conv_options
            )
        # what a decoder would classify needs no conv of its own, and its map is large
        self.coarse_classifier = self._build_classifier(channels, 0 if pixels == 'context' else 1)
        self.relation = RelationAttention(
            channels, channels, transform_channels, key_stride=key_stride, **self.conv_options
        )
        if fusion == 'concat':
            # a decoder has looked around each pixel, and its map is large
            size = 1 if pixels == 'context' else 3
            self.fuse_pixels = ConvModule(
                2 * channels, channels, size, padding=size // 2, **self.conv_options
            )
        elif fusion == 'weighted_add':
            self.fusion_weight = nn.Conv2d(2 * channels, 1, 1)
        if context is not None and pixels == 'backbone':
            self.context = SingleImageContext(context, self, in_channels, channels, has_logits=True)
            self._build_context_layers(channels, self.context.channels, transform_channels)
        self.final_conv = ConvModule(channels, channels, 1, **self.conv_options)
        self.folded_memory: Optional[nn.Module] = None

        self.loss_coarse = nn.ModuleList(MODELS.build(loss) for loss in as_list(loss_coarse))
        check_losses(self, 'loss_coarse', self.loss_coarse)

    def _build_classifier(self, channels: int, kernel_size: int = 1) -> nn.Sequential:
        """H1: conv, dropout, classifier, as :meth:`cls_seg` has them; no conv with size 0."""
        classifier = nn.Conv2d(channels, self.num_classes, 1)
        normal_init(classifier, std=0.01)  # as conv_seg starts
        return nn.Sequential(
            ConvModule(
                channels, channels, kernel_size, padding=kernel_size // 2, **self.conv_options
            )
            if kernel_size
            else nn.Identity(),
            nn.Dropout2d(self.dropout_ratio) if self.dropout_ratio > 0 else nn.Identity(),
            classifier,
        )

    def _build_context_layers(
        self, channels: int, context_channels: int, transform_channels: int
    ) -> None:
        """Layers that :meth:`aggregate` joins the single-image context by."""
        self.context_relation = RelationAttention(
            channels, context_channels, transform_channels, **self.conv_options
        )
        self.fuse_context = ConvModule(2 * channels, channels, 3, padding=1, **self.conv_options)

    # ---- the forward pass ----

    def forward(self, inputs: List[Tensor], prev_output: Optional[Tensor] = None) -> Tensor:
        """Feature maps of the backbone to logits [B, K, h, w]."""
        return self.cls_seg(self.forward_features(inputs)[-1])

    def forward_features(self, inputs: List[Tensor]) -> Tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            inputs (list[Tensor]): Feature maps of the backbone.

        Returns:
            tuple[Tensor]: R [B, C, h, w], coarse logits [B, K, h, w], R_aug [B, C, h, w].
        """
        pixels = self.pixel_features(inputs)
        coarse_logits = self.coarse_classifier(pixels)
        context = self.context(inputs, coarse_logits) if self.has_context_branch else None
        return pixels, coarse_logits, self.aggregate(pixels, coarse_logits, context)

    def pixel_features(self, inputs: List[Tensor]) -> Tensor:
        """R [B, C, h, w]."""
        if self.pixels == 'context':
            return self.bottleneck(self.context(inputs))
        return self.bottleneck(self._transform_inputs(inputs))

    @property
    def has_context_branch(self) -> bool:
        """Whether a single-image context is related to R, instead of being what R is made of."""
        return self.context is not None and self.pixels == 'backbone'

    def class_weights(self, coarse_logits: Tensor) -> Tensor:
        """Class weights [B, K, h, w] with which each pixel reads the memory."""
        weights = coarse_logits.softmax(dim=1)
        if self.hard_aggregate:
            # a comparison instead of a scatter, which exports without one
            classes = torch.arange(self.num_classes, device=weights.device)[:, None, None]
            weights = (classes == weights.argmax(dim=1, keepdim=True)).to(weights)
        return weights

    def aggregate(
        self, pixels: Tensor, coarse_logits: Tensor, context: Optional[Tensor] = None
    ) -> Tensor:
        """Augmented pixel representations R_aug (MDRL eq. 2 and 4).

        Args:
            pixels (Tensor): R [B, C, h, w].
            coarse_logits (Tensor): [B, K, h, w], before softmax.
            context (Tensor, optional): Single-image context [B, C', h', w'].

        Returns:
            Tensor: [B, C, h, w], what :meth:`cls_seg` classifies.
        """
        augmented = self.add_memory(pixels, self.class_weights(coarse_logits))
        if context is not None:
            related = self.context_relation(pixels, context)
            augmented = self.fuse_context(torch.cat([related, augmented], dim=1))
        return augmented

    def add_memory(self, pixels: Tensor, weights: Tensor) -> Tensor:
        """Memory context of the pixels, related to them and fused with them (MDRL eq. 2 and 4).

        Args:
            pixels (Tensor): R [B, C, h, w].
            weights (Tensor): Class weights [B, K, h, w].

        Returns:
            Tensor: [B, C, h, w].
        """
        read = self.read_memory if self.folded_memory is None else self.folded_memory
        related = self.relate(pixels, read(weights))
        if self.fusion == 'concat':
            return self.fuse_pixels(torch.cat([pixels, related], dim=1))
        if self.fusion == 'weighted_add':
            weight = self.fusion_weight(torch.cat([pixels, related], dim=1)).sigmoid()
            return pixels + weight * related
        return pixels + related

    def relate(self, pixels: Tensor, memory: Tensor) -> Tensor:
        """R_dl: R attends to the memory context (MDRL eq. 10 and 11); all are [B, C, h, w]."""
        return self.relation(pixels, memory)

    def read_memory(self, weights: Tensor) -> Tensor:
        """Memory context R_m [B, C, h, w] from class weights [B, K, h, w] (MCIBI eq. 12)."""
        return self.bank.vote(weights)

    def cls_seg(self, feat: Tensor) -> Tensor:
        """1x1 conv, dropout, classifier (MDRL eq. 5): [B, C, h, w] to logits [B, K, h, w]."""
        return super().cls_seg(self.final_conv(feat))

    # ---- a training step ----

    @at_any_stage
    def loss(
        self, inputs: List[Tensor], batch_data_samples: SampleList, train_cfg: ConfigType
    ) -> Dict[str, Tensor]:
        """All losses of one iteration (MDRL, eq. 18; MCIBI, eq. 19), and scalars to log.

        In training, every rank first takes rank 0's bank, once. Arguments are those of the base
        class.

        Returns:
            dict[str, Tensor]: `loss_*` and `acc_seg` of the final logits, `coarse_*` the same of
            the coarse ones, and what :meth:`memory_losses` gives.
        """
        labels = self.begin_step(batch_data_samples)
        pixels, coarse_logits, augmented = self.forward_features(inputs)
        losses = self.loss_by_feat(self.cls_seg(augmented), batch_data_samples)
        pixels, coarse_logits, labels = self.sampled(pixels, coarse_logits, labels)
        losses.update(self.pixel_losses('coarse', self.loss_coarse, coarse_logits, labels))
        losses.update(self.memory_losses(pixels, labels))
        return losses

    def sampled(
        self, pixels: Tensor, coarse_logits: Tensor, labels: Tensor
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """The pixels that the memory is trained on; all of them with `loss_stride=1`.

        Args:
            pixels (Tensor): R [B, C, h, w].
            coarse_logits (Tensor): [B, K, h, w].
            labels (Tensor): [B, H, W].

        Returns:
            tuple[Tensor]: Every so many-th of R, of the coarse logits, and of the labels at their
            size; or all three as they are.
        """
        step = self.loss_stride
        if step == 1:
            return pixels, coarse_logits, labels
        labels = labels_at_feature_size(labels, pixels.shape[2:])
        return (
            pixels[:, :, ::step, ::step],
            coarse_logits[:, :, ::step, ::step],
            labels[:, ::step, ::step],
        )

    def pixel_losses(
        self, prefix: str, losses: nn.ModuleList, logits: Tensor, labels: Tensor
    ) -> Dict[str, Tensor]:
        """Losses of logits beside the final ones, and their accuracy, under names with a prefix.

        Args:
            prefix (str): 'coarse' for `coarse_loss_ce` and `coarse_acc_seg`.
            losses (nn.ModuleList): Losses as MMSegmentation has them.
            logits (Tensor): [B, K, h, w].
            labels (Tensor): [B, H, W].
        """
        logits = resize(logits, labels.shape[1:], mode='bilinear', align_corners=self.align_corners)
        weight = None
        if self.sampler is not None:
            weight = self.sampler.sample(logits, labels[:, None])
        results: Dict[str, Tensor] = {}
        for loss in losses:
            value = loss(logits, labels, weight=weight, ignore_index=self.ignore_index)
            add_loss(results, f'{prefix}_{loss.loss_name}', value)
        results[f'{prefix}_acc_seg'] = accuracy(logits, labels, ignore_index=self.ignore_index)
        return results

    def predict_and_embed(self, inputs: List[Tensor]) -> Tuple[Tensor, Tensor]:
        """See the base class."""
        pixels, _, augmented = self.forward_features(inputs)
        return self.cls_seg(augmented), self.embed(pixels)

    # ---- inference only ----

    @torch.no_grad()
    def fold_memory(self) -> nn.Module:
        """What :meth:`read_memory` is at inference: a 1x1 conv with the weight [C, K, 1, 1].

        Holds for a :meth:`read_memory` that is linear in the weights and looks at no neighbours.
        """
        like = self.conv_seg.weight
        one_class = torch.eye(self.num_classes, dtype=like.dtype, device=like.device)
        kernel = self.read_memory(one_class[None, ..., None])[0].clone()  # [C, K, 1]
        conv = nn.Conv2d(self.num_classes, len(kernel), 1, bias=False).to(kernel)
        conv.weight.copy_(kernel[..., None])
        return conv

    def fold_(self) -> 'DatasetContextHead':
        """Turns this into a head for inference only, which predicts the same.

        The memory becomes the weight of a 1x1 conv, and what only training needs is taken off. For
        deployment: there is no way back, and the state dict is another.
        """
        if self.folded_memory is None:
            self.eval()
            self.folded_memory = self.fold_memory()
            self.folded = True
            for name in self.training_parts:
                setattr(self, name, None)
        return self
