"""Segmentors with class-aware regularization (CAR) on whatever decode head they have."""

import inspect
from typing import Any, Callable, Dict, List

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import BaseSegmentor, CascadeEncoderDecoder, EncoderDecoder
from mmseg.utils import SampleList, add_prefix
from torch import Tensor, nn

from ...registry import MODELS
from ...utils import did_you_mean, last_head
from ..decode_heads.label_check import batch_labels, num_labels
from .class_aware_regularization import CAR_OPTIONS, ClassAwareRegularization
from .merging import merge_, unmerged
from .pointwise import as_spatial


def _rename(state: dict, old: str, new: str) -> None:
    """Renames, in place, the keys that begin with `old`."""
    for key in [key for key in state if key.startswith(old)]:
        state[new + key[len(old) :]] = state.pop(key)


def _check_is_of(plain: Callable, name: str, options: dict) -> None:
    """Refuses the config of another segmentor, of which `type` alone was changed.

    Args:
        plain (Callable): Builds the segmentor without CAR.
        name (str): The segmentor with CAR.
        options (dict): What it is given besides the options of CAR.

    Raises:
        TypeError: Options that it doesn't take, or needs; names the segmentor whose they are.
    """
    parameters = inspect.signature(plain).parameters
    unknown = set(options) - set(parameters)
    if unknown and all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
        owners = [
            owner for owner, cls in MODELS.module_dict.items()
            if inspect.isclass(cls) and issubclass(cls, BaseSegmentor)
            and not issubclass(cls, _CAR) and unknown <= set(inspect.signature(cls).parameters)
        ]  # fmt: skip
        with_car = [owner for owner in owners if f'CAR{owner}' in MODELS.module_dict]
        near = did_you_mean(unknown, [*CAR_OPTIONS, *parameters])
        remedy = 'CAR has no such option either' + (near or ': remove it')
        if with_car:
            remedy = f"That is of {with_car[0]}: write type='CAR{with_car[0]}'"
        elif owners:
            remedy = (
                f'That is of {owners[0]}, which CAR is not for: it regularises the features of a '
                f'head that ends in conv_seg. Keep type={owners[0]!r}, or use CAR on a config of '
                'EncoderDecoder or CascadeEncoderDecoder'
            )
        raise TypeError(f'{name} has no option {sorted(unknown)}. {remedy}')
    if 'num_stages' in parameters and 'num_stages' not in options:
        raise TypeError(
            f'{name} needs num_stages, which a cascade has. If there is one decode_head, write '
            "type='CAREncoderDecoder'"
        )


def _as_in_checkpoints(model: nn.Module, state: dict, prefix: str, metadata: dict) -> None:
    """Hook of `state_dict`."""
    _rename(state, f'{prefix}{model._head_prefix}car.', f'{prefix}car.')


class _CAR(BaseSegmentor):
    """Mixin before a segmentor of MMSegmentation; see :class:`CAREncoderDecoder`."""

    plain_type: str  # name of the segmentor without CAR
    takes_options_of = (ClassAwareRegularization,)  # for defaults that the signature doesn't show

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in CAR_OPTIONS if name in kwargs}
        if not args:
            _check_is_of(super().__init__, type(self).__name__, kwargs)
        super().__init__(*args, **kwargs)
        # A part of the head, whose learning rate and freezing it follows (`paramwise_cfg` and its
        # like go by the names of parameters); in checkpoints it is `car`.
        head = self.regularized_head
        head.car = ClassAwareRegularization(head, **options)
        self._register_state_dict_hook(_as_in_checkpoints)

    @property
    def car(self) -> ClassAwareRegularization:
        """What CAR adds, a child of :attr:`regularized_head`; None once it has been merged."""
        return self.regularized_head.car

    @property
    def regularized_head(self) -> BaseDecodeHead:
        """The decode head, of a cascade the last one."""
        return last_head(self)

    @property
    def _head_prefix(self) -> str:
        cascade = isinstance(self.decode_head, nn.ModuleList)
        return f'decode_head.{len(self.decode_head) - 1}.' if cascade else 'decode_head.'

    def _decode_head_forward_train(self, inputs: List[Tensor], data_samples: SampleList) -> dict:
        """The head's losses, and those of CAR as `car.loss_*`."""
        head = self.regularized_head
        labels = batch_labels(data_samples, num_labels(head), head.ignore_index)
        with self.car.capture():
            losses = super()._decode_head_forward_train(inputs, data_samples)
        losses.update(add_prefix(self.car.loss(labels), 'car'))
        return losses

    @torch.no_grad()
    def folded_state_dict(self) -> dict:
        """State of the plain segmentor that predicts the same.

        The linear conv is merged into the conv after it, and a conv made 1x1 by `pointwise` stands
        in the middle of a kernel of its former size, so the plain config loads it.

        Returns:
            dict[str, Tensor]: Keys and shapes of the plain segmentor.

        Raises:
            ValueError: Position 'released', and a bias that can't be merged.
        """
        state = {
            key: value for key, value in self.state_dict().items() if not key.startswith('car.')
        }
        prefix = self._head_prefix
        merge_(self.car, state, self.regularized_head, prefix)
        for key, size in self.car.spatial_sizes.items():
            state[prefix + key] = as_spatial(state[prefix + key], size)
        return state

    def _load_from_state_dict(
        self, state_dict: Dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """A plain checkpoint brings no linear conv: it gets one with which it predicts the same."""
        convs = self.car.linears
        key = f'{prefix}{self._head_prefix}conv_seg.weight'
        if convs and key in state_dict and not any(
            name.startswith(f'{prefix}car.linear.') for name in state_dict
        ):  # fmt: skip
            if self.car.position == 'released':
                raise ValueError(
                    "a checkpoint without CAR's linear conv can not be taken by "
                    "position='released', whose conv starts at random: train on from it with "
                    "position='classifier', or start from weights of the backbone alone"
                )
            weight = state_dict[key]
            if weight.shape[1] == convs[0].in_channels:
                plain = unmerged(convs[0], weight, self.car.head_name)
                state_dict[f'{prefix}car.linear.weight'] = plain['linear']
                state_dict[key] = plain['conv_seg']
        _rename(state_dict, f'{prefix}car.', f'{prefix}{self._head_prefix}car.')
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


@MODELS.register_module()
class CAREncoderDecoder(_CAR, EncoderDecoder):
    """EncoderDecoder with class-aware regularization (CAR): `model=dict(type='CAREncoderDecoder')`.

    Works on any decode head that ends in `conv_seg`. A 1x1 linear conv is put before `conv_seg`
    (with position 'released', before the conv that `conv_seg` follows), and the losses are on its
    output [B, C, h, w], in float32, with class centres over the whole batch and all ranks. It adds
    `car.linear.weight` to a checkpoint (as a parameter it is the head's,
    `decode_head.car.linear.weight`) and renames nothing: a plain checkpoint loads and predicts the
    same; `tools/fold_car.py` makes a plain one of a trained one, so that inference costs nothing
    more.

    Args:
        **kwargs: Options of :class:`mmseg.models.segmentors.EncoderDecoder`, and those of
            :class:`ClassAwareRegularization`: `losses`, `formulation`, `linear`, `max_channels`,
            `pointwise`, `label_resize`, `position`, `pool_size`.

    Raises:
        TypeError: The config is that of another segmentor, for instance of a cascade.
        ValueError: A head without `conv_seg`, options that don't fit, or a label out of range.
    """

    plain_type = 'EncoderDecoder'


@MODELS.register_module()
class CARCascadeEncoderDecoder(_CAR, CascadeEncoderDecoder):
    """CascadeEncoderDecoder with CAR on the last decode head, as :class:`CAREncoderDecoder`."""

    plain_type = 'CascadeEncoderDecoder'
