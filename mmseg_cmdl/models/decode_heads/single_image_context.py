"""Any registered decode head as the single-image context of a memory head.

Source: `SSA` in MDRL, eq. 3; `A_wi` in MCIBI, eq. 4.
"""

import inspect
from typing import Any, Dict, List, Optional, Set, Union

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

USE = (
    'Use a head that ends in conv_seg, as PSPHead, ASPPHead, CCHead, DAHead, UPerHead, NLHead and '
    'OCRHead do'
)

# Of FCNHead's kinds, these set the number of convolutions themselves and don't take it.
_OF_TWO_CONVS = {'CCHead', 'GCHead', 'NLHead'}


def options_of(cls: type) -> Set[str]:
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


def check_context(name: str, context: Optional[dict]) -> None:
    """Refuses, for the head `name`, what is no config of a head that classifies pixels."""
    if context is None:
        return
    if not (isinstance(context, dict) and context.get('type')):
        raise ValueError(
            f"{name}: context must be the config of a decode head, such as dict(type='PSPHead'), "
            f'got {context!r}'
        )
    cls = registered_class(context)
    if inspect.isclass(cls) and not (
        issubclass(cls, BaseDecodeHead) and 'num_classes' in options_of(cls)
    ):
        kind = context['type'] if isinstance(context['type'], str) else cls.__name__
        raise ValueError(f'context: {kind} is no decode head that classifies pixels. {USE}')


def or_before(name: str) -> str:
    """What else to do about a head that refines the prediction of one before it."""
    cls = MODELS.get(name)
    if inspect.isclass(cls) and issubclass(cls, BaseCascadeDecodeHead):
        return f', or in a cascade change the type of the head before {name}, which it refines'
    return ''


def _build_head(cfg: dict, options: dict) -> nn.Module:
    """The head of `cfg`, built from `options`.

    Raises:
        ValueError: It can't be; says in a sentence what `cfg` has to be.
    """
    cls = registered_class(options)
    name = cfg['type'] if isinstance(cfg['type'], str) else cls.__name__
    if inspect.isclass(cls):
        missing = [
            p.name
            for p in inspect.signature(cls).parameters.values()
            if p.default is p.empty
            and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
            and p.name not in options
        ]
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
            f"context: {name} can't be built with what a decode head inherits ({error}). {USE}"
        ) from error


def brings_a_finer_map(context: dict) -> bool:
    """Whether a context may classify a finer map than the one that the head around it takes."""
    cls = registered_class(context)
    several = isinstance(context.get('in_channels'), (list, tuple))
    return (several and context.get('input_transform') in (None, 'multiple_select')) or (
        # these have one `in_index`, and take a second map unasked, or enlarge theirs
        inspect.isclass(cls) and issubclass(cls, (DepthwiseSeparableASPPHead, SETRUPHead))
    )


class SingleImageContext(BaseModule):
    """A decode head without its classifiers: its last feature map is the context.

    Args:
        cfg (dict): Config of a registered decode head; what it doesn't set is taken from `holder`.
        holder (BaseDecodeHead): The head that the context is for.
        in_channels (int | list[int]): As the holder was given them; it may have summed them since.
        channels (int): Inside the context.
        has_logits (bool): Whether the holder has logits that a cascade head can refine. Defaults to
            False.

    Attributes:
        head (nn.Module): The head. Its `conv_seg`, and any further classifier it has, is an
            identity, so no parameter of it is left without a gradient.
        channels (int): Channels of the context map.

    Raises:
        ValueError: The head can't be built from these options, has no `conv_seg` to take off, has
            a memory, or refines logits where there are none yet.
    """

    def __init__(
        self,
        cfg: dict,
        holder: BaseDecodeHead,
        in_channels: Union[int, List[int]],
        channels: int,
        has_logits: bool = False,
    ):
        super().__init__()
        inherited: Dict[str, Any] = {key: getattr(holder, key) for key in _INHERITED}
        inherited.update(in_channels=in_channels, in_index=holder.in_index, channels=channels)
        if holder.input_transform is not None:
            inherited.update(input_transform=holder.input_transform)
        self.head = _build_head(cfg, {**inherited, **cfg})
        name = type(self.head).__name__
        classifier = getattr(self.head, 'conv_seg', None)
        if not isinstance(classifier, nn.Conv2d):
            raise ValueError(
                f'context: {name} has no conv_seg, so it has no feature map before a '
                f'classifier that could serve as context. {USE}{or_before(name)}'
            )
        if any(isinstance(module, MemoryBank) for module in self.head.modules()):
            raise ValueError(
                f'context: {name} has a memory of its own, which nothing would update or '
                'train here. Name a head without one'
            )
        if isinstance(self.head, BaseCascadeDecodeHead) and not has_logits:
            raise ValueError(
                f'{type(holder).__name__}: {name} refines the logits of a head before it, and here '
                'there is none, since its own map is what is classified. Name a context that is '
                'not a cascade head, such as PSPHead'
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
