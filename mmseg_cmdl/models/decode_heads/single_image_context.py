"""Any registered decode head as the single-image context of a memory head.

Source: `SSA` in MDRL, eq. 3; `A_wi` in MCIBI, eq. 4.
"""

import inspect
from typing import Any, List, Optional, Set, Tuple, Union

from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmseg.models.decode_heads import DepthwiseSeparableASPPHead, SETRUPHead
from mmseg.models.decode_heads.cascade_decode_head import BaseCascadeDecodeHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor, nn

from ...utils import registered_class
from ..memory import MemoryBank

_INHERITED = (
    'num_classes',
    'out_channels',
    'dropout_ratio',
    'conv_cfg',
    'norm_cfg',
    'act_cfg',
    'ignore_index',
    'align_corners',
)

_USE = (
    'Use a head that ends in conv_seg, as PSPHead, ASPPHead, CCHead, DAHead, UPerHead, NLHead and '
    'OCRHead do'
)

# What FCNHead and its like have and our heads don't need: the convolutions before the classifier.
_FCN_OPTIONS = ('num_convs', 'kernel_size', 'concat_input', 'dilation')
# Of its kinds, these set the number of convolutions themselves and don't take it.
_OF_TWO_CONVS = {'CCHead', 'GCHead', 'NLHead'}


def _options_of(cls: type) -> Set[str]:
    """Names of the arguments that a class takes, those it hands on to its parents too."""
    names: Set[str] = set()
    for parent in cls.__mro__:
        if '__init__' not in vars(parent):
            continue
        parameters = inspect.signature(vars(parent)['__init__']).parameters.values()
        names.update(p.name for p in parameters)
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    if _OF_TWO_CONVS & {parent.__name__ for parent in cls.__mro__}:
        names.discard('num_convs')
    return names


def _check_context(name: str, context: Optional[dict]) -> None:
    if context is not None and not (isinstance(context, dict) and context.get('type')):
        raise ValueError(
            f"{name}: context must be the config of a decode head, such as dict(type='PSPHead'), "
            f'got {context!r}'
        )
    if context is not None:
        _check_classifies_pixels(context)


def _check_classifies_pixels(context: dict) -> None:
    cls = registered_class(context)
    if inspect.isclass(cls) and not (
        issubclass(cls, BaseDecodeHead) and 'num_classes' in _options_of(cls)
    ):
        name = context['type'] if isinstance(context['type'], str) else cls.__name__
        raise ValueError(f'context: {name} is no decode head that classifies pixels. {_USE}')


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
        accepted = _options_of(cls)
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


def _or_before(name: str) -> str:
    """What else to do about a head that refines the prediction of one before it."""
    cls = MODELS.get(name)
    if inspect.isclass(cls) and issubclass(cls, BaseCascadeDecodeHead):
        return f', or in a cascade change the type of the head before {name}, which it refines'
    return ''


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


def check_required(name: str, options: dict, context: Optional[dict] = None, **needed: Any) -> None:
    """Options without which no head can be built, and a context that is none.

    Args:
        name (str): The head's, for the message.
        options (dict): Others that it has been given.
        context (dict, optional): Config of its context. Before the options: those of a head that
            classifies something else than pixels say nothing.
        **needed: Name and value; None for what the config doesn't set.

    Raises:
        TypeError: Names what is missing, and the head whose options these are.
        ValueError: The context is no decode head.
    """
    _check_context(name, context)
    missing = [key for key, value in needed.items() if value is None]
    if not missing:
        return
    unknown = set(options) - set(inspect.signature(BaseDecodeHead.__init__).parameters)
    heads = [
        name for name, cls in MODELS.module_dict.items()
        if inspect.isclass(cls) and unknown <= _options_of(cls)
    ]  # fmt: skip
    inner = [
        key for key, value in options.items()
        if isinstance(value, dict) and str(value.get('type')).endswith('Head')
    ]  # fmt: skip
    remedy = f'. {sorted(unknown)} are options of {heads[0]}' if unknown and heads else ''
    if remedy and 'in_channels' in missing and not inner:
        remedy += f', which no head of ours can stand in for. {_USE}'
    if inner:
        remedy += f', which holds other heads: change the type of {inner[0]}, not its own'
    raise TypeError(f'{name} needs {" and ".join(missing)}{remedy}')


def place_leftovers(
    name: str, options: dict, context: Optional[dict], stages: bool = True, **given: Any
) -> Tuple[dict, dict]:
    """Options of the head whose `type` was changed to ours: to the context, or left out.

    A config inherits them from its base, so one changed line can't remove them. What is left out is
    named in the log. No option of ours has the name of one that such a head has, but for `fusion`,
    which the values tell apart, so none is taken for the other.

    Args:
        name (str): The head's, for messages.
        options (dict): What it has been given and doesn't know itself.
        context (dict, optional): Config of its context.
        stages (bool): Whether its context may need the prediction of a stage before it.
        **given: What it has been given and knows, for the message.

    Returns:
        tuple[dict]: Options of the base class, config of the context.

    Raises:
        TypeError: An option that nobody has.
    """
    own = inspect.signature(BaseDecodeHead.__init__).parameters
    kept = {key: value for key, value in options.items() if key in own}
    cls = None if context is None else registered_class(context)
    accepted = set() if cls is None else _options_of(cls)
    moved = {key: options[key] for key in options if key not in kept and key in accepted}
    unknown = set(options) - set(kept) - set(moved) - set(_FCN_OPTIONS)
    if unknown:
        heads, others = _heads_with(unknown, {**options, **given}, stages)
        remedy = '' if context is None else f'. Neither has its context, {context["type"]}'
        if heads:
            remedy += (
                f'. That is of {_some(heads)}: if it was the head before, {_kept_as_context(heads)}'
            )
        elif others:
            remedy += (
                f'. That is of {_some(others)}, which can not be the context of {name} (it has no '
                'conv_seg, or needs the prediction of a stage before it): remove it'
                f'{_or_before(others[0])}'
            )
        else:
            remedy += '. No decode head that is registered has it: remove it'
        raise TypeError(f'{name} has no option {sorted(unknown)}{remedy}')
    left_out = {key: options[key] for key in _FCN_OPTIONS if key in options and key not in moved}
    if left_out:
        listed = ', '.join(f'{key}={value!r}' for key, value in left_out.items())
        print_log(
            f'{name}: left out {listed}: options of the convolutions of FCNHead and its like, '
            'which this head does not have; a config that changes the type of such a head inherits '
            'them',
            'current',
        )
    return kept, ({**moved, **context} if moved else context)


def place_inputs(
    name: str,
    in_channels: Any,
    options: dict,
    context: Optional[dict],
    **given: Any,
) -> Tuple[Union[int, List[int]], dict, Optional[dict]]:
    """Several feature maps go to a context; the head that holds it takes the last of them.

    Configs of heads such as UPerHead name several maps, which one changed line can't change.

    Args:
        name (str): The head's, for messages.
        in_channels (int | list[int]): As the head was given them.
        options (dict): Its options for the base class, `in_index` and `input_transform` among them.
        context (dict, optional): Config of its context.
        **given: What it has been given besides, for the message.

    Returns:
        tuple: `in_channels` and `options` of the head, config of the context.

    Raises:
        ValueError: There is no context to take them, or channels and indices don't match.
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


def inherited_options(
    head: BaseDecodeHead, in_channels: Union[int, List[int]], channels: int
) -> dict:
    """Options that the context of `head` takes where its own config doesn't set them.

    Args:
        head (BaseDecodeHead): The head that holds the context.
        in_channels (int | list[int]): As the head was given them; it may have summed them since.
        channels (int): Inside the context.
    """
    options = {key: getattr(head, key) for key in _INHERITED}
    options.update(in_channels=in_channels, in_index=head.in_index, channels=channels)
    if head.input_transform is not None:
        options.update(input_transform=head.input_transform)
    return options


def _missing_options(cls: type, options: dict) -> List[str]:
    """Arguments that a class asks for and that `options` hasn't got."""
    parameters = list(inspect.signature(cls).parameters.values())
    return [
        p.name
        for p in parameters
        if p.default is p.empty
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and p.name not in options
    ]


def _build_head(cfg: dict, options: dict) -> nn.Module:
    """The head of `cfg`, built from `options`.

    Raises:
        ValueError: It can't be; says in a sentence what `cfg` has to be.
    """
    _check_classifies_pixels(cfg)
    cls = registered_class(options)
    name = cfg['type'] if isinstance(cfg['type'], str) else cls.__name__
    if inspect.isclass(cls):
        missing = _missing_options(cls, options)
        if missing:
            raise ValueError(
                f'context: {name} also needs {", ".join(missing)}: set it in `context`, which '
                'inherits the rest from the head around it'
            )
    if options.get('norm_cfg') is None and 'norm_cfg' not in cfg:
        options.pop('norm_cfg', None)  # a class may need one, and has it by default
    try:
        return MODELS.build(options)
    except AssertionError as error:  # heads of several maps assert that they get them
        raise ValueError(
            f"context: {name} can't be built for in_index={options['in_index']} with in_channels="
            f'{options["in_channels"]}{f" ({error})" if str(error) else ""}; if it takes several '
            "feature maps, set in_channels, in_index and input_transform='multiple_select' in "
            '`context`'
        ) from error
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"context: {name} can't be built with what a decode head inherits ({error}). {_USE}"
        ) from error


def takes_several_maps(in_channels: Union[int, List[int], None], options: dict) -> bool:
    """Whether options are those of a decoder of several maps, and not of maps made into one."""
    several = isinstance(in_channels, (list, tuple))
    return several and options.get('input_transform') in (None, 'multiple_select')


def brings_a_finer_map(context: dict) -> bool:
    """Whether a context may classify a finer map than the one that the head around it takes."""
    cls = registered_class(context)
    return takes_several_maps(context.get('in_channels'), context) or (
        # these have one `in_index`, and take a second map unasked, or enlarge theirs
        inspect.isclass(cls) and issubclass(cls, (DepthwiseSeparableASPPHead, SETRUPHead))
    )


def check_no_cascade(name: str, context: 'SingleImageContext') -> None:
    """Refuses a context that refines logits where there are none yet.

    Raises:
        ValueError: Names the context and what to write instead.
    """
    if isinstance(context.head, BaseCascadeDecodeHead):
        raise ValueError(
            f'{name}: {type(context.head).__name__} refines the logits of a head before it, and '
            'here there is none, since its own map is what is classified. Name a context that is '
            'not a cascade head, such as PSPHead'
        )


class SingleImageContext(BaseModule):
    """A decode head without its classifiers: its last feature map is the context.

    Args:
        cfg (dict): Config of a registered decode head.
        inherited (dict): Options that the head takes where `cfg` doesn't set them.

    Attributes:
        head (nn.Module): The head. Its `conv_seg`, and any further classifier it has, is an
            identity, so no parameter of it is left without a gradient.
        channels (int): Channels of the context map.

    Raises:
        ValueError: The head can't be built from these options, has no `conv_seg` to take off, or
            has a memory.
    """

    def __init__(self, cfg: dict, inherited: dict):
        super().__init__()
        self.head = _build_head(cfg, {**inherited, **cfg})
        name = type(self.head).__name__
        classifier = getattr(self.head, 'conv_seg', None)
        if not isinstance(classifier, nn.Conv2d):
            raise ValueError(
                f'context: {name} has no conv_seg, so it has no feature map before a '
                f'classifier that could serve as context. {_USE}{_or_before(name)}'
            )
        if any(isinstance(module, MemoryBank) for module in self.head.modules()):
            raise ValueError(
                f'context: {name} has a memory of its own, which nothing would update or '
                'train here. Name a head without one'
            )
        self.channels = classifier.in_channels
        for key, module in list(self.head.named_children()):
            if isinstance(module, nn.Conv2d) and key.endswith(('conv_seg', 'cls_seg')):
                setattr(self.head, key, nn.Identity())
        self.head.dropout = nn.Identity()  # not None: some heads call it unasked

    def forward(self, inputs: List[Tensor], coarse_logits: Optional[Tensor] = None) -> Tensor:
        """
        Args:
            inputs (list[Tensor]): All feature maps of the backbone.
            coarse_logits (Tensor, optional): [B, K, h, w]; a cascade head (OCR) takes them as what
                the stage before it predicted.

        Returns:
            Tensor: [B, channels, h', w'].
        """
        if isinstance(self.head, BaseCascadeDecodeHead):
            output = self.head(inputs, coarse_logits)
        else:
            output = self.head(inputs)
        return output[0] if isinstance(output, (tuple, list)) else output
