"""3x3 convs of a head made 1x1, so that a pixel's feature mixes no neighbours of other classes.

Source: CAR, section 4.2.1, "A" in table 1.
"""

from typing import Any, Iterable

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from torch import Tensor, nn


def make_pointwise_(head: nn.Module, names: Iterable[str]) -> None:
    """Replace the spatial convs in the named sub-modules by 1x1 convs, freshly initialised.

    Args:
        head (nn.Module): A decode head.
        names (Iterable[str]): Sub-modules as in `head.named_modules()`: a conv, a ConvModule, or
            anything that holds some.

    Raises:
        ValueError: A name that the head doesn't have, or without a conv larger than 1x1.
    """
    modules = dict(head.named_modules())
    for name in names:
        if name not in modules or not name:
            near = [key for key, module in modules.items() if _is_spatial(module)]
            raise ValueError(
                f'pointwise: {type(head).__name__} has no sub-module {name!r}; its '
                f'convs larger than 1x1 are {near}'
            )
        found = [
            key
            for key, module in head.named_modules()
            if (key == name or key.startswith(f'{name}.')) and _is_spatial(module)
        ]
        if not found:
            raise ValueError(
                f'pointwise: {name!r} of {type(head).__name__} has no conv larger than 1x1'
            )
        for key in found:
            _replace(head, key)


def _is_spatial(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1


def _replace(head: nn.Module, key: str) -> None:
    conv: Any = head.get_submodule(key)
    # a stride or size that only the spatial conv gives would change the map's size
    reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size)]
    padding = [conv.padding] if isinstance(conv.padding, str) else list(conv.padding)
    if padding != ['same'] and [2 * p for p in padding] != reach:
        raise ValueError(
            f'pointwise: {key!r} of {type(head).__name__} changes the size of the map '
            f'(kernel_size={conv.kernel_size}, padding={conv.padding}); only a conv '
            'that keeps it can become 1x1'
        )
    replace_conv_(head, key, kernel_size=1, padding=0, dilation=1)


def replace_conv_(head: nn.Module, key: str, **changes: Any) -> None:
    """Replace a conv of a head by one with some other options, freshly initialised.

    Args:
        head (nn.Module): A decode head.
        key (str): The conv, as in `head.named_modules()`.
        **changes: Options of :class:`torch.nn.Conv2d`.
    """
    parent_name, _, leaf = key.rpartition('.')
    parent = head.get_submodule(parent_name)
    old = getattr(parent, leaf)
    names = ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation')
    options = {name: getattr(old, name) for name in (*names, 'groups')}
    new = nn.Conv2d(**{**options, 'bias': old.bias is not None, **changes})
    setattr(parent, leaf, new.to(old.weight))
    if isinstance(parent, ConvModule):
        parent.init_weights()


def as_spatial(kernel: Tensor, size: torch.Size) -> Tensor:
    """A 1x1 kernel [O, I, 1, 1] in the middle of a `size` one of zeros: the same conv."""
    rows, columns = (n // 2 for n in size[2:])
    return F.pad(kernel, (columns, columns, rows, rows))
