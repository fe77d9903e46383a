"""Any registered decode head as the single-image context of a memory head.

Source: `SSA` in MDRL, eq. 3; `A_wi` in MCIBI, eq. 4.
"""

import inspect
from typing import List, Optional, Tuple, Union

from mmengine.model import BaseModule
from mmseg.models.decode_heads.cascade_decode_head import BaseCascadeDecodeHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor, nn

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

# What only FCNHead has: the convolutions that this head has its own of.
_FCN_OPTIONS = ('num_convs', 'kernel_size', 'concat_input', 'dilation')


def place_leftovers(name: str, options: dict, context: Optional[dict]) -> Tuple[dict, dict]:
    """Options of the head whose `type` was changed to ours: to the context, or left out.

    A config inherits them from its base, so one changed line can't remove them.
    """
    own = inspect.signature(BaseDecodeHead.__init__).parameters
    kept = {key: value for key, value in options.items() if key in own}
    accepted = {}
    if context is not None:
        cls = context['type']
        cls = MODELS.get(cls) if isinstance(cls, str) else cls
        accepted = inspect.signature(cls.__init__).parameters if cls is not None else {}
    moved = {key: options[key] for key in options if key not in kept and key in accepted}
    unknown = set(options) - set(kept) - set(moved) - set(_FCN_OPTIONS)
    if unknown:
        raise TypeError(
            f'{name} has no option {sorted(unknown)}. If it belongs to the head that '
            "was there before, name that head: context=dict(type='PSPHead'), say"
        )
    return kept, ({**moved, **context} if moved else context)


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
        ValueError: The head can't be built from these options, or has no `conv_seg` to take off.
    """

    def __init__(self, cfg: dict, inherited: dict):
        super().__init__()
        options = {**inherited, **cfg}
        try:
            self.head = MODELS.build(options)
        except (TypeError, AssertionError, KeyError) as error:
            raise ValueError(
                f"context: {cfg.get('type')} can't be built from {sorted(options)} ({error}). It "
                'inherits what the memory head has; set in `context` what it needs of its own'
            ) from error
        classifier = getattr(self.head, 'conv_seg', None)
        if not isinstance(classifier, nn.Conv2d):
            raise ValueError(
                f'context: {cfg.get("type")} has no conv_seg, so it has no feature map before a '
                'classifier that could serve as context. Use a head that ends in conv_seg, as '
                'PSPHead, ASPPHead, CCHead, DAHead, UPerHead, NLHead and OCRHead do'
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
