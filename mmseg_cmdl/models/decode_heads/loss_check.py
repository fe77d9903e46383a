"""Losses that a head can't call are refused when it is built, not in the first step."""

import copy
import inspect
from typing import Callable, Iterable, List, Optional, Tuple, Union

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn

_PLAIN = "dict(type='CrossEntropyLoss')"


def _as_modules(losses: Union[nn.Module, Iterable[nn.Module]]) -> list:
    return list(losses) if isinstance(losses, Iterable) else [losses]


def check_losses(
    head: BaseDecodeHead, key: str, losses: Union[nn.Module, Iterable[nn.Module]]
) -> None:
    """Refuses losses of a map of logits that `head` can't call.

    Those are losses that only the head can call that they were made for, where a sampler weighs the
    pixels those that take no weight for each pixel, and with `ignore_index=None` those that need a
    number, as MMSegmentation's cross entropy does.

    Args:
        head (BaseDecodeHead): Whose they are; its `loss_decode` and `sampler` are there.
        key (str): The option that they come from, for the message.
        losses (nn.Module | Iterable[nn.Module]): MMSegmentation's or the like.

    Raises:
        ValueError: Names the loss and what to set.
    """
    _check_arguments(head, key, losses)
    name = type(head).__name__
    # three images of two by two pixels: a loss of each image doesn't pass for one of each pixel
    classes = torch.arange(12).view(3, 2, 2) % head.out_channels
    logits = torch.zeros(3, head.out_channels, 2, 2)
    for loss in _as_modules(losses) if head.ignore_index is None else ():
        reason = _weighted_call(loss, logits, classes, None)
        if reason and 'ignore_index' in reason:
            raise ValueError(
                f'{name}: {key}: {type(loss).__name__} takes no ignore_index=None ({reason}). If '
                'every pixel counts, set a number that no label is, as the default ignore_index=255'
            )
    if head.sampler is None:
        return
    sampler = type(head.sampler).__name__
    # of a copy: its loss may count its calls
    trial = copy.deepcopy(head.sampler)
    reason = _reason(lambda: trial.sample(logits, classes[:, None]))
    if reason:
        raise ValueError(
            f'{name}: {sampler} can not choose pixels by loss_decode ({reason}). Set thresh of the '
            f'sampler, or loss_decode={_PLAIN}'
        )
    for loss in _as_modules(losses):
        reason = _weighted_call(loss, logits, classes, head.ignore_index)
        if reason:
            raise ValueError(
                f'{name}: {key}: {type(loss).__name__} takes no weight for each pixel, by which '
                f'{sampler} chooses them ({reason}). Take {sampler} or this loss out, or set '
                f'{key}={_PLAIN}'
            )


def check_losses_of_vectors(head: BaseDecodeHead, key: str, losses: Iterable[nn.Module]) -> None:
    """Refuses losses of class vectors [K, C], of which those that aren't there yet weigh nothing.

    Args:
        head (BaseDecodeHead): Whose they are.
        key (str): The option that they come from, for the message.
        losses (Iterable[nn.Module]): MMSegmentation's or the like.

    Raises:
        ValueError: Names the loss and what to set.
    """
    _check_arguments(head, key, losses)
    classes = torch.tensor([0, head.num_classes - 1]).view(2, 1, 1)
    logits = torch.zeros(2, head.num_classes, 1, 1)
    for loss in losses:
        values: List[Tensor] = []
        trial = copy.deepcopy(loss)

        def call(loss: nn.Module = trial, values: List[Tensor] = values) -> None:
            for weight in (0.0, 1.0):
                weights = torch.full(classes.shape, weight)
                given = dict(weight=weights, ignore_index=head.ignore_index)
                values.append(loss(logits, classes, **given).sum())

        reason = _reason(call)
        if len(values) == 2 and values[0] == values[1] != 0:
            reason = 'the same value whatever the weight is'
        if reason:
            raise ValueError(
                f'{type(head).__name__}: {key}: {type(loss).__name__} takes no weight for each '
                'vector, without which classes that are not in memory yet would count '
                f'({reason}). Set {key}={_PLAIN}, or None'
            )


def check_losses_of_similarity(
    head: BaseDecodeHead, key: str, losses: Iterable[nn.Module], kinds: Tuple[type, ...]
) -> None:
    """Refuses losses of a memory that compare something else than this head's similarity.

    Args:
        head (BaseDecodeHead): Whose they are.
        key (str): The option that they come from, for the message.
        losses (Iterable[nn.Module]): They may be a user's own.
        kinds (tuple[type]): The losses of this package for it.

    Raises:
        ValueError: Names the loss and those for it.
    """
    for loss in losses:
        ours = type(loss).__module__.startswith('mmseg_cmdl.')
        # MMSegmentation gives its losses a weight for each pixel
        of_logits = 'weight' in inspect.signature(loss.forward).parameters
        host = type(loss).__module__.startswith('mmseg.') and of_logits
        if (ours or host) and not isinstance(loss, kinds):
            names = ' and '.join(kind.__name__ for kind in kinds)
            raise ValueError(
                f'{type(head).__name__}: {key}: {type(loss).__name__} is no loss of pixels '
                f'compared with the memory, as {names} are'
            )


def _check_arguments(
    head: BaseDecodeHead, key: str, losses: Union[nn.Module, Iterable[nn.Module]]
) -> None:
    name = type(head).__name__
    for loss in _as_modules(losses):
        parameters = inspect.signature(loss.forward).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        lacking = [option for option in ('weight', 'ignore_index') if option not in parameters]
        if lacking and not takes_any:
            raise ValueError(
                f'{name}: {key}: {type(loss).__name__} takes {list(parameters)} and no '
                f'{" and no ".join(lacking)}, which heads give to their loss; only the head that '
                f'it was made for can call it, as PIDHead does. Set {key}={_PLAIN}; hard pixels by '
                "sampler=dict(type='OHEMPixelSampler', thresh=0.9, min_kept=100000)"
            )


def _weighted_call(
    loss: nn.Module, logits: Tensor, labels: Tensor, ignore_index: Optional[int]
) -> Optional[str]:
    """Why a loss can't be called with a weight for each pixel; None if it can.

    Args:
        loss (nn.Module): It stays as it is.
        logits (Tensor): [B, K, H, W].
        labels (Tensor): [B, H, W].
        ignore_index (int | None): Label that doesn't count.
    """
    loss, weight = copy.deepcopy(loss), torch.ones(labels.shape)
    return _reason(lambda: loss(logits, labels, weight=weight, ignore_index=ignore_index))


def _reason(call: Callable) -> Optional[str]:
    """The error of a call, in a few words; None if it ends well, or if nothing is computed."""
    if torch.zeros(1).is_meta:
        return None
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            call()
    except Exception as error:
        text = ' '.join(str(error).split())
        return f'{type(error).__name__}: {text}' if text else type(error).__name__
    return None
