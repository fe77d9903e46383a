"""Options of the head whose `type` was changed to ours: to the context, left out, or refused.

A config inherits them from its base, so one changed line can't remove them.
"""

import inspect
from typing import Any, List, NoReturn, Optional, Set, Tuple, Union

from mmengine.logging import print_log
from mmseg.models.decode_heads.cascade_decode_head import BaseCascadeDecodeHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import nn

from ...utils import did_you_mean, registered_class
from .single_image_context import USE, check_context, options_of, or_before

# What FCNHead and its like have and our heads don't need: the convolutions before the classifier.
_FCN_OPTIONS = ('num_convs', 'kernel_size', 'concat_input', 'dilation')
# Options of our heads in version 0.2.0, where another head has one of the old name.
_RENAMED = {'momentum': 'memory_momentum', 'concat_input': 'concat_features'}


def place_options(
    name: str,
    in_channels: Union[int, List[int], None],
    options: dict,
    context: Optional[dict],
    stages: bool = True,
    **given: Any,
) -> Tuple[Union[int, List[int]], dict, Optional[dict]]:
    """What a head of ours is built from, by what it has been given.

    Args:
        name (str): The head's, for messages.
        in_channels (int | list[int], optional): As the head was given them.
        options (dict): What it has been given and doesn't know itself.
        context (dict, optional): Config of its context.
        stages (bool): Whether its context may need the prediction of a stage before it.
        **given: What it has been given and must have; None for what the config doesn't set.

    Returns:
        tuple: `in_channels` and options of the base class, config of the context.

    Raises:
        TypeError: An option is missing, or nobody has it.
        ValueError: The context is no decode head; or several feature maps are named and there is no
            context to take them, or channels and indices don't match.
    """
    needed = dict(in_channels=in_channels, **given)
    _check_required(name, options, context, needed)
    options, context = _place_leftovers(name, options, context, stages, needed)
    return _place_inputs(name, in_channels, options, context, given)


def _heads_with(unknown: Set[str], given: dict, stages: bool = True) -> Tuple[List[str], List[str]]:
    """Heads that have all these options, those first that have little else.

    Args:
        unknown (set[str]): The options.
        given (dict): All options that there are. Heads that can be built from them are preferred.
        stages (bool): Whether a head that needs the prediction of a stage before it will do.

    Returns:
        tuple[list[str]]: Names of those that can be a context, and of those that can't.
    """
    having: List[Tuple[int, str]] = []
    building: List[Tuple[int, str]] = []
    others: List[Tuple[int, str]] = []
    for name, cls in MODELS.module_dict.items():
        ours = cls.__module__.startswith(__name__.split('.')[0] + '.')
        if ours or not inspect.isclass(cls) or not issubclass(cls, BaseDecodeHead):
            continue
        accepted = options_of(cls)
        if not unknown | {'num_classes'} <= accepted:
            continue
        entry = (len(accepted - set(given)), name)
        if issubclass(cls, BaseCascadeDecodeHead) and not stages:
            others.append(entry)
            continue
        having.append(entry)
        try:
            head = cls(**{key: value for key, value in given.items() if key in accepted})
        except Exception:
            continue
        has_classifier = isinstance(getattr(head, 'conv_seg', None), nn.Conv2d)
        (building if has_classifier else others).append(entry)
    if others and not building:
        having = []
    able, unable = sorted(building or having), sorted(others)
    return [name for _, name in able], [name for _, name in unable]


def _some(names: List[str], most: int = 3) -> str:
    return ', '.join(names[:most]) + (' and others' if names[most:] else '')


def _kept_as_context(heads: List[str]) -> str:
    """What to write so that the head that was there before stays, if it is one of these."""
    advice = f'it stays as the context: context=dict(type={heads[0]!r})'
    if heads[1:]:
        advice += f', or {_some(heads[1:])}'
    if issubclass(MODELS.get(heads[0]), BaseCascadeDecodeHead):
        advice += (
            ', in an EncoderDecoder whose only decode_head is this one. Its coarse prediction is '
            'what the stage before predicts in a cascade'
        )
    return advice


def _check_required(name: str, options: dict, context: Optional[dict], needed: dict) -> None:
    # before the options: those of a head that classifies something else than pixels say nothing
    check_context(name, context)
    missing = [key for key, value in needed.items() if value is None]
    if not missing:
        return
    unknown = set(options) - set(inspect.signature(BaseDecodeHead.__init__).parameters)
    heads = [
        name for name, cls in MODELS.module_dict.items()
        if inspect.isclass(cls) and unknown <= options_of(cls)
    ]  # fmt: skip
    inner = [
        key for key, value in options.items()
        if isinstance(value, dict) and str(value.get('type')).endswith('Head')
    ]  # fmt: skip
    remedy = f'. {sorted(unknown)} are options of {heads[0]}' if unknown and heads else ''
    if remedy and 'in_channels' in missing and not inner:
        remedy += f', which no head of ours can stand in for. {USE}'
    if inner:
        remedy += f', which holds other heads: change the type of {inner[0]}, not its own'
    raise TypeError(f'{name} needs {" and ".join(missing)}{remedy}')


def _own_options(cls: Optional[type]) -> Set[str]:
    """Options of a head of ours, and those of the bank that it has by default."""
    if cls is None:  # a subclass that isn't registered
        return set()
    names = options_of(cls)
    bank = inspect.signature(cls).parameters.get('bank')
    kind = bank.default.get('type') if bank is not None and isinstance(bank.default, dict) else None
    return names | ({f'bank.{name}' for name in options_of(MODELS.get(kind))} if kind else set())


def _refuse(
    name: str, unknown: Set[str], context: Optional[dict], given: dict, stages: bool
) -> NoReturn:
    """Says whose options the unknown ones are, and what becomes of that head."""
    known = _own_options(MODELS.get(name))
    for old in unknown & set(_RENAMED):
        if _RENAMED[old] in known:
            raise TypeError(f'{name} has no option {old!r}: it is called {_RENAMED[old]}')
    remedy = '' if context is None else f'. Neither has its context, {context["type"]}'
    heads, others = _heads_with(unknown, given, stages)
    if heads:
        remedy += (
            f'. That is of {_some(heads)}: if it was the head before, {_kept_as_context(heads)}'
        )
    elif others:
        remedy += (
            f'. That is of {_some(others)}, which can not be the context of {name} (it has no '
            'conv_seg, or needs the prediction of a stage before it): remove it'
            f'{or_before(others[0])}'
        )
    else:
        near = did_you_mean(unknown, known)
        remedy += near or '. No decode head that is registered has it: remove it'
    raise TypeError(f'{name} has no option {sorted(unknown)}{remedy}')


def _place_leftovers(
    name: str, options: dict, context: Optional[dict], stages: bool, given: dict
) -> Tuple[dict, Optional[dict]]:
    """What is left out is named in the log.

    No option of ours has the name of one that such a head has, but for `fusion`, which the values
    tell apart, so none is taken for the other.
    """
    own = inspect.signature(BaseDecodeHead.__init__).parameters
    kept = {key: value for key, value in options.items() if key in own}
    cls = None if context is None else registered_class(context)
    accepted = set() if cls is None else options_of(cls)
    moved = {key: options[key] for key in options if key not in kept and key in accepted}
    unknown = set(options) - set(kept) - set(moved) - set(_FCN_OPTIONS)
    if unknown:
        _refuse(name, unknown, context, {**options, **given}, stages)
    left_out = {key: options[key] for key in _FCN_OPTIONS if key in options and key not in moved}
    if left_out:
        known = _own_options(MODELS.get(name))
        listed = ', '.join(f'{key}={value!r}' for key, value in left_out.items())
        print_log(
            f'{name}: left out {listed}: options of the convolutions of FCNHead and its like, '
            'which this head does not have; a config that changes the type of such a head inherits '
            'them'
            + ''.join(
                f'. {name} has {new} in place of {old}'
                for old, new in _RENAMED.items()
                if old in left_out and new in known
            ),
            'current',
        )
    return kept, ({**moved, **context} if moved else context)


def _place_inputs(
    name: str, in_channels: Any, options: dict, context: Optional[dict], given: dict
) -> Tuple[Union[int, List[int]], dict, Optional[dict]]:
    """Several feature maps go to a context; the head that holds it takes the last of them.

    Configs of heads such as UPerHead name several maps, which one changed line can't change.
    """
    transform = options.get('input_transform')
    single = not isinstance(in_channels, (list, tuple))
    if transform not in (None, 'multiple_select') or (single and transform is None):
        return in_channels, options, context
    in_index = options.get('in_index', -1)
    lists = isinstance(in_channels, (list, tuple)) and isinstance(in_index, (list, tuple))
    if not lists or len(in_index) != len(in_channels):
        raise ValueError(
            f'{name}: in_channels and in_index must both be numbers, or lists of the same length '
            f'for several feature maps; got {in_channels} and {in_index} with '
            f'input_transform={transform!r}'
        )
    if context is None:
        heads, _ = _heads_with(set(), {**options, **given, 'in_channels': in_channels}, False)
        kept = (
            f' If a decoder that takes them was there before, {_kept_as_context(heads)}'
            if heads
            else ''
        )
        raise ValueError(
            f'{name}: in_channels={in_channels}, in_index={in_index} and input_transform='
            f'{transform!r} name several feature maps. Take one, in_channels={in_channels[-1]}, '
            f'in_index={in_index[-1]}, input_transform=None say, or all at the size of the first: '
            f"input_transform='resize_concat'.{kept}"
        )
    selection = dict(in_channels=in_channels, in_index=in_index)
    if transform is not None:  # None is what heads that select by themselves are given
        selection['input_transform'] = transform
    print_log(
        f'{name}: the feature maps {list(in_index)} go to the context {context["type"]}, the last '
        'to the head itself; for another, set in_channels and in_index of the head, and in '
        '`context` those of the context',
        'current',
    )
    own = {**options, 'in_index': in_index[-1], 'input_transform': None}
    return in_channels[-1], own, {**selection, **context}
