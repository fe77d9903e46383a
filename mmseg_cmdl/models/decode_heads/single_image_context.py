"""Any registered decode head as the single-image context of a memory head.

Source: `SSA` in MDRL, eq. 3; `A_wi` in MCIBI, eq. 4.
"""

import inspect
from typing import List, Optional, Set, Tuple, Union

from mmengine.logging import print_log
from mmengine.model import BaseModule
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

# What FCNHead and its like have and our heads don't need: the convolutions before the classifier.
_FCN_OPTIONS = ('num_convs', 'kernel_size', 'concat_input', 'dilation')
# Of its kinds, these set the number of convolutions themselves and don't take it.
_OF_TWO_CONVS = {'CCHead', 'GCHead', 'NLHead'}


def _options_of(cls: type) -> Set[str]:
    """Names of the arguments that a class takes, those it hands on to its parents too."""
    names = set()
    for parent in cls.__mro__:
        if '__init__' not in vars(parent):
            continue
        parameters = inspect.signature(parent.__init__).parameters.values()
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


def place_leftovers(name: str, options: dict, context: Optional[dict]) -> Tuple[dict, dict]:
    """Options of the head whose `type` was changed to ours: to the context, or left out.

    A config inherits them from its base, so one changed line can't remove them. What is left out is
    named in the log. No option of ours has the name of one that such a head has, but for `fusion`,
    which the values tell apart, so none is taken for the other.

    Args:
        name (str): The head's, for messages.
        options (dict): What it has been given and doesn't know itself.
        context (dict, optional): Config of its context.

    Returns:
        tuple[dict]: Options of the base class, config of the context.

    Raises:
        ValueError: The context isn't the config of a head.
        TypeError: An option that nobody has.
    """
    _check_context(name, context)
    own = inspect.signature(BaseDecodeHead.__init__).parameters
    kept = {key: value for key, value in options.items() if key in own}
    cls = None if context is None else registered_class(context)
    accepted = set() if cls is None else _options_of(cls)
    moved = {key: options[key] for key in options if key not in kept and key in accepted}
    unknown = set(options) - set(kept) - set(moved) - set(_FCN_OPTIONS)
    if unknown:
        remedy = (
            'If it belongs to the head that was there before, name that head: context=dict('
            "type='PSPHead'), say"
            if context is None
            else f'Neither has its context, {context["type"]}: remove it'
        )
        raise TypeError(f'{name} has no option {sorted(unknown)}. {remedy}')
    left_out = {key: options[key] for key in _FCN_OPTIONS if key in options and key not in moved}
    if left_out:
        given = ', '.join(f'{key}={value!r}' for key, value in left_out.items())
        print_log(
            f'{name}: left out {given}: options of the convolutions of FCNHead and its like, which '
            'this head has not; a config that changes the type of such a head inherits them',
            'current',
        )
    return kept, ({**moved, **context} if moved else context)


def place_inputs(
    name: str, in_channels: Union[int, List[int]], options: dict, context: Optional[dict]
) -> Tuple[Union[int, List[int]], dict, Optional[dict]]:
    """Several feature maps go to a context; the head that holds it takes the last of them.

    Configs of heads such as UPerHead name several maps, which one changed line can't change.

    Args:
        name (str): The head's, for messages.
        in_channels (int | list[int]): As the head was given them.
        options (dict): Its options for the base class, `in_index` and `input_transform` among them.
        context (dict, optional): Config of its context.

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
    if single or not isinstance(in_index, (list, tuple)) or len(in_index) != len(in_channels):
        raise ValueError(
            f'{name}: in_channels and in_index must both be numbers, or lists of the same length '
            f'for several feature maps; got {in_channels} and {in_index} with '
            f'input_transform={transform!r}'
        )
    if context is None:
        raise ValueError(
            f'{name}: in_channels={in_channels}, in_index={in_index} and input_transform='
            f'{transform!r} name several feature maps. Take one, in_channels={in_channels[-1]}, '
            f'in_index={in_index[-1]}, input_transform=None say, or all at the size of the first: '
            "input_transform='resize_concat'"
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
    options.update(
        in_channels=in_channels, in_index=head.in_index, channels=channels, init_cfg=None
    )
    if head.input_transform is not None:
        options.update(input_transform=head.input_transform)
    return options


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
        options = {**inherited, **cfg}
        try:
            self.head = MODELS.build(options)
        except (TypeError, AssertionError, KeyError) as error:
            inputs = {key: options[key] for key in ('in_channels', 'in_index')}
            reason = str(error) or type(error).__name__  # the base class asserts without a word
            raise ValueError(
                f"context: {cfg['type']} can't be built from {sorted(options)} with {inputs} "
                f'({reason}). It inherits what the head around it has; set in `context` what it '
                'needs of its own'
            ) from error
        classifier = getattr(self.head, 'conv_seg', None)
        if not isinstance(classifier, nn.Conv2d):
            raise ValueError(
                f'context: {cfg.get("type")} has no conv_seg, so it has no feature map before a '
                'classifier that could serve as context. Use a head that ends in conv_seg, as '
                'PSPHead, ASPPHead, CCHead, DAHead, UPerHead, NLHead and OCRHead do'
            )
        if any(isinstance(module, MemoryBank) for module in self.head.modules()):
            raise ValueError(
                f'context: {cfg["type"]} has a memory of its own, which nothing would update or '
                'train here. Name the head that has none'
            )
        self.channels = classifier.in_channels
        for name, module in list(self.head.named_children()):
            if isinstance(module, nn.Conv2d) and name.endswith(('conv_seg', 'cls_seg')):
                setattr(self.head, name, nn.Identity())
        self.head.dropout = nn.Identity()  # not None: some heads call it unasked

    def forward(self, inputs: List[Tensor], coarse_logits: Tensor) -> Tensor:
        """
        Args:
            inputs (list[Tensor]): All feature maps of the backbone.
            coarse_logits (Tensor): [B, K, h, w]; a cascade head (OCR) takes them as what the
                stage before it predicted.

        Returns:
            Tensor: [B, channels, h', w'].
        """
        if isinstance(self.head, BaseCascadeDecodeHead):
            output = self.head(inputs, coarse_logits)
        else:
            output = self.head(inputs)
        return output[0] if isinstance(output, (tuple, list)) else output
