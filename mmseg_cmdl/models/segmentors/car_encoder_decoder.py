"""Segmentors with class-aware regularization (CAR) on whatever decode head they have."""

from typing import List, Optional, Sequence

import torch
from mmseg.models.segmentors import CascadeEncoderDecoder, EncoderDecoder
from mmseg.utils import SampleList, add_prefix
from torch import Tensor, nn

from ...registry import MODELS
from ...utils import as_list, last_head, warn_without_effect
from ..decode_heads.label_check import LABELS_ARE_CHECKED, batch_labels
from .class_aware_regularization import DEFAULT_LOSSES, ClassAwareRegularization, classifier_of
from .pointwise import as_spatial, make_pointwise_

# What a config of CAR has and that of the plain segmentor has not.
CAR_OPTIONS = (
    'losses',
    'formulation',
    'linear',
    'max_channels',
    'pointwise',
    'label_resize',
    'fuse_losses',
    'check_labels',
)


class _CAR:
    """Mixin before a segmentor of MMSegmentation; see :class:`CAREncoderDecoder`."""

    plain_type = None  # name of the segmentor without CAR

    def __init__(
        self,
        *args,
        losses: Sequence[dict] = DEFAULT_LOSSES,
        formulation: str = 'paper',
        linear: bool = True,
        max_channels: int = 512,
        pointwise: Sequence[str] = (),
        label_resize: str = 'nearest',
        fuse_losses: Optional[bool] = None,
        check_labels: Optional[str] = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        head = self.regularized_head
        classifier_of(head)
        pointwise = [pointwise] if isinstance(pointwise, str) else pointwise
        self._spatial_sizes = {key: value.shape for key, value in head.state_dict().items()}
        make_pointwise_(head, pointwise)
        self._pointwise_keys = [
            key
            for key, value in head.state_dict().items()
            if value.shape != self._spatial_sizes[key]
        ]
        warn_without_effect(self, 'There is one form of the losses', fuse_losses=fuse_losses)
        warn_without_effect(self, LABELS_ARE_CHECKED, check_labels=check_labels)
        self.car = ClassAwareRegularization(
            head, as_list(losses), formulation, linear, max_channels, label_resize
        )

    @property
    def regularized_head(self) -> nn.Module:
        """The decode head, of a cascade the last one."""
        return last_head(self)

    @property
    def _head_prefix(self) -> str:
        cascade = isinstance(self.decode_head, nn.ModuleList)
        return f'decode_head.{len(self.decode_head) - 1}.' if cascade else 'decode_head.'

    def _decode_head_forward_train(self, inputs: List[Tensor], data_samples: SampleList) -> dict:
        """The head's losses, and those of CAR as `car.loss_*`."""
        head = self.regularized_head
        labels = batch_labels(data_samples, head.num_classes, head.ignore_index)
        with self.car.capture():
            losses = super()._decode_head_forward_train(inputs, data_samples)
        losses.update(add_prefix(self.car.loss(labels), 'car'))
        return losses

    @torch.no_grad()
    def folded_state_dict(self) -> dict:
        """State of the plain segmentor that predicts the same.

        The linear conv is merged into `conv_seg`, and a conv made 1x1 by `pointwise` stands in the
        middle of a kernel of its former size, so the plain config loads it.

        Returns:
            dict[str, Tensor]: Keys and shapes of the plain segmentor.
        """
        state = {
            key: value for key, value in self.state_dict().items() if not key.startswith('car.')
        }
        prefix = self._head_prefix
        key = f'{prefix}conv_seg.weight'
        state[key] = self.car.folded(state[key])
        for key in self._pointwise_keys:
            state[prefix + key] = as_spatial(state[prefix + key], self._spatial_sizes[key])
        return state

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        """A plain checkpoint brings no linear conv: it gets one with which it predicts the same."""
        linear, classifier = (
            f'{prefix}{name}.weight' for name in ('car.linear', f'{self._head_prefix}conv_seg')
        )
        if self.car.linear is not None and linear not in state_dict and classifier in state_dict:
            weight = state_dict[classifier]
            if weight.shape[1] == self.car.linear.in_channels:
                plain = self.car.unfolded(weight)
                state_dict[linear], state_dict[classifier] = plain['linear'], plain['conv_seg']
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


@MODELS.register_module()
class CAREncoderDecoder(_CAR, EncoderDecoder):
    """EncoderDecoder with class-aware regularization (CAR): `model=dict(type='CAREncoderDecoder')`.

    Works on any decode head that ends in `conv_seg`. A 1x1 linear conv is put before `conv_seg`,
    and the losses are on its output [B, C, h, w], in float32, with class centres over the whole
    batch and all ranks. It adds `car.linear.weight` to a checkpoint and renames nothing: a plain
    checkpoint loads and predicts the same; `tools/fold_car.py` makes a plain one of a trained one,
    so that inference costs nothing more.

    Args:
        losses (Sequence[dict]): Losses, with their weights and thresholds. Defaults to
            IntraClassCenterToPixelLoss, InterClassCenterToCenterLoss (threshold 0.5) and
            InterClassCenterToPixelLoss (0.25), each of weight 1. A loss of your own is called as
            `loss(features [P, C], labels [P], centers [K, C], counts [K], ignore_index=...)`.
        formulation (str): 'paper' or 'released', of the losses that don't say theirs.
            Defaults to 'paper'.
        linear (bool): Put a linear conv before `conv_seg`. Defaults to True.
        max_channels (int): Most channels that leave the linear conv; up to so many it starts as
            the identity. Defaults to 512.
        pointwise (Sequence[str]): Sub-modules of the head whose 3x3 convs become 1x1 at build ("A"
            in table 1), as ['convs.1', 'conv_cat'] of NLHead or ['fpn_bottleneck'] of UPerHead.
            Defaults to ().
        label_resize (str): How labels are brought to feature size: 'nearest' or 'nearest-exact', as
            in `F.interpolate`. Defaults to 'nearest'.
        **kwargs: Options of :class:`mmseg.models.segmentors.EncoderDecoder`.

    Raises:
        ValueError: A head without `conv_seg`, options that don't fit, or a label out of range.
    """

    plain_type = 'EncoderDecoder'


@MODELS.register_module()
class CARCascadeEncoderDecoder(_CAR, CascadeEncoderDecoder):
    """CascadeEncoderDecoder with CAR on the last decode head, as :class:`CAREncoderDecoder`."""

    plain_type = 'CascadeEncoderDecoder'
