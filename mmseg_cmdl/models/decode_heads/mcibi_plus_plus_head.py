"""MCIBIPlusPlusHead: a mean and a deviation per class, read as fixed noise rows (MCIBI++)."""

import inspect
import logging
from typing import Any, Dict, List, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.logging import print_log
from mmseg.models.utils import resize
from mmseg.utils import ConfigType, SampleList
from torch import Tensor, nn

from ...registry import MODELS
from ...utils import (
    as_list,
    check_choice,
    check_flags,
    class_rows,
    did_you_mean,
    labels_at_feature_size,
)
from ..layers import FeaturePyramid, RelationAttention
from ..memory import GaussianBank
from .cascade_stage import at_any_stage
from .dataset_context_head import DatasetContextHead
from .loss_check import check_losses

# What the class weights of a pass and the logits of the pass before count, and what their sum is
# divided by (released code: the sum of both weights, less one).
_OWN_WEIGHT, _GIVEN_WEIGHT = 2.0, 1.5
_DIVISOR = _OWN_WEIGHT + _GIVEN_WEIGHT - 1


@MODELS.register_module()
class MCIBIPlusPlusHead(DatasetContextHead):
    """Soft mining of contextual information beyond image (MCIBI++).

    Differs from :class:`MCIBIHead` in its memory, a :class:`GaussianBank`, which no loss trains,
    and where there is a `context`: its map has a classifier of its own, whose logits are the class
    weights; it attends to the pixels that the memory has been added to, and is joined with them.

    Source: the released code of MCIBI++ (Jin et al., TPAMI 2022).

    Args:
        bank (dict): Config of a :class:`GaussianBank`; `num_classes`, `channels` and `type` are
            filled in.
        num_passes (int): Passes at inference; from the second on, the class weights come from the
            pass's own logits and those of the pass before, 2 to 1.5. The features are reused.
            Defaults to 1.
        warmup_iters (int): Training iterations in which the labels themselves are the class
            weights, one-hot; pixels without a label keep their own. Defaults to 0.
        downsample_before_sa (bool): Bring pixels and memory to half the size, by one 3x3 conv of
            stride 2 for both, before they are related. Defaults to False.
        relate_context (bool): With a context, its map attends to the fused pixels; otherwise they
            are joined as they are. Defaults to True.
        weights_from (str): With a context, whose logits are the class weights: 'context', those of
            its map, or 'coarse', those of the pixels. Defaults to 'context'.
        pyramid (dict, optional): Bring what is classified to the size of the backbone's finest map,
            as released on UPerNet: `in_channels` (list[int]) and `in_index` (list[int]) of the maps
            before the last, the finest first, and `out_channels` (int; `channels`); see
            :class:`FeaturePyramid`. Defaults to None.
        loss_context (dict | list[dict], optional): Loss of the logits of the context's map; None
            for none. Defaults to cross entropy with weight 1.
        final_kernel_size (int): Kernel size, an odd number, of the conv before the classifier;
            `coarse_kernel_size` and `context_kernel_size` are those of the convs before the coarse
            classifier and the classifier of the context. All default to 1.
        **kwargs: Options of :class:`DatasetContextHead`: `context`, `fusion`, `hard_aggregate`, ...

    :meth:`loss` also logs `stat_left_out_pixels`, the number of labelled pixels of all ranks whose
    features aren't finite and were kept from the memory.

    Raises:
        ValueError: Options that don't fit together.
    """

    bank: GaussianBank
    training_parts: Tuple[str, ...] = (*DatasetContextHead.training_parts, 'loss_context')

    def __init__(
        self,
        *args: Any,
        bank: dict = dict(type='GaussianBank'),
        num_passes: int = 1,
        warmup_iters: int = 0,
        downsample_before_sa: bool = False,
        relate_context: bool = True,
        weights_from: str = 'context',
        pyramid: Optional[dict] = None,
        loss_context: Union[dict, List[dict], None] = dict(
            type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0
        ),
        final_kernel_size: int = 1,
        coarse_kernel_size: int = 1,
        context_kernel_size: int = 1,
        **kwargs: Any,
    ):
        for name, value, least in (
            ('num_passes', num_passes, 1),
            ('warmup_iters', warmup_iters, 0),
            ('final_kernel_size', final_kernel_size, 1),
            ('coarse_kernel_size', coarse_kernel_size, 1),
            ('context_kernel_size', context_kernel_size, 1),
        ):
            if not isinstance(value, int) or value < least:
                raise ValueError(
                    f'MCIBIPlusPlusHead: {name} must be an integer of at least {least}, '
                    f'got {value!r}'
                )
            if name.endswith('kernel_size') and value % 2 == 0:
                raise ValueError(f'MCIBIPlusPlusHead: {name} must be odd, got {value}')
        check_choice(self, ('context', 'coarse'), weights_from=weights_from)
        check_flags(self, downsample_before_sa=downsample_before_sa, relate_context=relate_context)
        self.relate_context = relate_context
        self.weights_from = weights_from
        self.context_kernel_size = context_kernel_size
        super().__init__(*args, **kwargs)
        if not self.has_context_branch:
            self._tell_without_effect(
                relate_context=relate_context,
                weights_from=weights_from,
                context_kernel_size=context_kernel_size,
                loss_context=loss_context,
            )
        if coarse_kernel_size != 1:
            self.coarse_classifier = self._build_classifier(self.channels, coarse_kernel_size)
        self.num_passes = num_passes
        self.warmup_iters = warmup_iters
        self.bank = self._build_bank(bank, GaussianBank, channels=self.channels)
        if self.bank.channels != self.channels:
            raise ValueError(
                "MCIBIPlusPlusHead: class vectors are as long as the head's own channels; bank "
                f'channels={self.bank.channels} must equal channels={self.channels}'
            )
        self.downsample = None
        if downsample_before_sa:
            self.downsample = ConvModule(
                self.channels, self.channels, 3, stride=2, padding=1, **self.conv_options
            )
        joined = self.channels + (self.context.channels if self.has_context_branch else 0)
        self.pyramid = None
        if pyramid is not None:
            self.pyramid_index, self.pyramid = self._build_pyramid(joined, pyramid)
            joined = self.pyramid.channels
        self.final_conv = ConvModule(
            joined,
            self.channels,
            final_kernel_size,
            padding=final_kernel_size // 2,
            **self.conv_options,
        )
        self.loss_context = nn.ModuleList(
            MODELS.build(loss) for loss in as_list(loss_context) if self.has_context_branch
        )
        check_losses(self, 'loss_context', self.loss_context)
        self.consistency = self._build_consistency([])

    def _build_context_layers(
        self, channels: int, context_channels: int, transform_channels: int
    ) -> None:
        self.context_classifier = self._build_classifier(context_channels, self.context_kernel_size)
        self.context_relation = None
        if self.relate_context:
            self.context_relation = RelationAttention(
                context_channels,
                channels,
                max(1, channels // 2),
                out_channels=channels,
                **self.conv_options,
            )

    def _tell_without_effect(self, **options: Any) -> None:
        """Names options of the context's branch that are set where there is none."""
        defaults = inspect.signature(MCIBIPlusPlusHead).parameters
        told = [name for name, value in options.items() if value != defaults[name].default]
        if told:
            print_log(
                f'MCIBIPlusPlusHead: {", ".join(told)} without effect: there is no context beside '
                "the pixels (context, with pixels='backbone')",
                'current',
                logging.WARNING,
            )

    def _build_pyramid(self, top_channels: int, options: dict) -> Tuple[List[int], FeaturePyramid]:
        """Indices of the maps that it takes, and the pyramid."""
        known = {'in_channels', 'in_index', 'out_channels'}
        unknown = set(options) - known if isinstance(options, dict) else set()
        if unknown or not isinstance(options, dict):
            raise TypeError(
                'MCIBIPlusPlusHead: pyramid is dict(in_channels=[...], in_index=[...]), with '
                f'out_channels too, got {options!r}{did_you_mean(unknown, known)}'
            )
        in_channels, in_index = options.get('in_channels', ()), options.get('in_index', ())
        lists = all(isinstance(value, (list, tuple)) for value in (in_channels, in_index))
        if not lists or not in_index or len(in_channels) != len(in_index):
            raise ValueError(
                'MCIBIPlusPlusHead: pyramid needs in_channels and in_index, lists of the same '
                f'length; got {in_channels!r} and {in_index!r}'
            )
        out_channels = options.get('out_channels')
        pyramid = FeaturePyramid(
            in_channels,
            top_channels,
            self.channels if out_channels is None else out_channels,
            self.align_corners,
            **self.conv_options,
        )
        return list(in_index), pyramid

    def relate(self, pixels: Tensor, memory: Tensor) -> Tensor:
        """See the base class; at half the size with `downsample_before_sa`."""
        if self.downsample is None:
            return self.relation(pixels, memory)
        related = self.relation(self.downsample(pixels), self.downsample(memory))
        return resize(related, pixels.shape[2:], mode='bilinear', align_corners=False)

    def augment(self, pixels: Tensor, weights: Tensor, context: Optional[Tensor]) -> Tensor:
        """Pixels with what the memory and the context give them, before a pyramid.

        Args:
            pixels (Tensor): R [B, C, h, w].
            weights (Tensor): Class weights [B, K, h, w].
            context (Tensor, optional): Single-image context [B, C', h, w].

        Returns:
            Tensor: [B, C, h, w]; with a context [B, C + C', h, w], joined in this order.
        """
        augmented = self.add_memory(pixels, weights)
        if context is None:
            return augmented
        if self.context_relation is not None:
            augmented = self.context_relation(context, augmented)
        return torch.cat([augmented, context], dim=1)

    def aggregate(
        self, pixels: Tensor, coarse_logits: Tensor, context: Optional[Tensor] = None
    ) -> Tensor:
        """See the base class; `coarse_logits` are those that the class weights are made from."""
        return self.augment(pixels, self.class_weights(coarse_logits), context)

    def bring_to_size(self, inputs: List[Tensor], augmented: Tensor) -> Tensor:
        """What :meth:`cls_seg` classifies, from what :meth:`augment` gives: by the pyramid."""
        if self.pyramid is None:
            return augmented
        return self.pyramid([inputs[index] for index in self.pyramid_index], augmented)

    def _maps(
        self, inputs: List[Tensor]
    ) -> Tuple[Tensor, Tensor, Optional[Tensor], Optional[Tensor]]:
        """R, coarse logits, the context's map and its logits, or None twice."""
        pixels = self.pixel_features(inputs)
        coarse_logits = self.coarse_classifier(pixels)
        if not self.has_context_branch:
            return pixels, coarse_logits, None, None
        context = self.context(inputs, coarse_logits)
        context = self._at_size_of(pixels, context)
        return pixels, coarse_logits, context, self.context_classifier(context)

    def _weights_logits(self, coarse_logits: Tensor, context_logits: Optional[Tensor]) -> Tensor:
        """The logits that the class weights come from."""
        from_coarse = context_logits is None or self.weights_from == 'coarse'
        return coarse_logits if from_coarse else context_logits

    def forward_features(self, inputs: List[Tensor]) -> Tuple[Tensor, Tensor, Tensor]:
        """See the base class; the last pass of `num_passes`.

        With a `pyramid` the last of the three, what is classified, is finer than the others.
        """
        pixels, coarse_logits, context, context_logits = self._maps(inputs)
        own = self._weights_logits(coarse_logits, context_logits)
        augmented = self.bring_to_size(inputs, self.aggregate(pixels, own, context))
        for _ in range(self.num_passes - 1):
            given = self._at_size_of(own, self.cls_seg(augmented))
            logits = (_OWN_WEIGHT * own + _GIVEN_WEIGHT * given) / _DIVISOR
            augmented = self.bring_to_size(inputs, self.aggregate(pixels, logits, context))
        return pixels, coarse_logits, augmented

    def _at_size_of(self, like: Tensor, x: Tensor) -> Tensor:
        return resize(x, like.shape[2:], mode='bilinear', align_corners=self.align_corners)

    def predict_and_embed(self, inputs: List[Tensor]) -> Tuple[Tensor, Tensor]:
        """See the base class; both at the size of the pixels, where a `pyramid` predicts finer."""
        pixels, _, augmented = self.forward_features(inputs)
        return self._at_size_of(pixels, self.cls_seg(augmented)), self.embed(pixels)

    def _warmed_up(self, weights: Tensor, labels: Tensor) -> Tensor:
        """Class weights of this iteration: in the first `warmup_iters` the labels, one-hot."""
        if not self.training or self.warmup_iters == 0:
            return weights
        labels = labels_at_feature_size(labels, weights.shape[2:])
        classes = class_rows(labels, self.num_classes, self.ignore_index)
        one_hot = F.one_hot(classes, self.num_classes + 1)[..., :-1].movedim(-1, 1)
        warming = self.bank.read('num_updates') < self.warmup_iters
        known = (classes < self.num_classes)[:, None]
        return torch.where(warming & known, one_hot.to(weights), weights)

    @at_any_stage
    def loss(
        self, inputs: List[Tensor], batch_data_samples: SampleList, train_cfg: ConfigType
    ) -> Dict[str, Tensor]:
        """All losses of one iteration, and scalars to log; see the base class.

        Returns:
            dict[str, Tensor]: As the base class, and with a context `context_*`.
        """
        labels = self.begin_step(batch_data_samples)
        pixels, coarse_logits, context, context_logits = self._maps(inputs)
        own = self._weights_logits(coarse_logits, context_logits)
        weights = self._warmed_up(self.class_weights(own), labels)
        augmented = self.augment(pixels, weights, context)
        logits = self.cls_seg(self.bring_to_size(inputs, augmented))
        losses = self.loss_by_feat(logits, batch_data_samples)
        if context is not None:
            losses.update(self.pixel_losses('context', self.loss_context, context_logits, labels))
        pixels, coarse_logits, labels = self.sampled(pixels, coarse_logits, labels)
        losses.update(self.pixel_losses('coarse', self.loss_coarse, coarse_logits, labels))
        losses.update(self.memory_losses(pixels, labels))
        return losses

    def memory_losses(self, pixels: Tensor, labels: Tensor) -> Dict[str, Tensor]:
        """No loss trains the memory; the hook of `consistency` moves it."""
        return self.consistency(dict(pixels=pixels, labels=labels))

    def update_bank(self, pixels: Tensor, labels: Tensor) -> Dict[str, Tensor]:
        """Moves the bank by the features at the size of the labels.

        Args:
            pixels (Tensor): R [B, C, h, w].
            labels (Tensor): [B, H, W].

        Returns:
            dict[str, Tensor]: `stat_left_out_pixels`; see the class.
        """
        counted = self.bank.update_(pixels, labels, self.ignore_index, self.align_corners)
        return {} if counted is None else dict(stat_left_out_pixels=counted.left_out)
