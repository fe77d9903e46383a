"""The linear conv of CAR merged into the conv after it, and back, so that plain heads agree."""

from typing import Dict

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .class_aware_regularization import ClassAwareRegularization


@torch.no_grad()
def merge_(
    car: ClassAwareRegularization, state: Dict[str, Tensor], head: BaseDecodeHead, prefix: str
) -> None:
    """Merge the linear convs into what they stand before.

    A bias, which position 'released' has, goes into that of the next conv, or is taken from the
    running mean of the batch norm after it.

    Args:
        car (ClassAwareRegularization): The convs.
        state (dict[str, Tensor]): State of the model; changed in place, its tensors aren't.
        head (BaseDecodeHead): The head they are in.
        prefix (str): Of the head's keys.

    Raises:
        ValueError: A bias that the padding of a larger conv or the norm makes impossible to merge.
    """
    for place, linear in zip(car.places, car.linears):
        module = head.get_submodule(place)
        key = f'{prefix}{place}'
        conv_key = key if isinstance(module, nn.Conv2d) else f'{key}.conv'
        kernel = state[f'{conv_key}.weight']
        state[f'{conv_key}.weight'] = merged(kernel, linear.weight)
        if linear.bias is None:
            continue
        if kernel.shape[2:] != (1, 1):
            raise ValueError(
                f'{place} of {type(head).__name__} is no 1x1 conv, so the linear conv before it, '
                "which has a bias with position='released', can not be merged into it; with "
                f'pointwise={[place]} it could'
            )
        bias = (kernel.flatten(1).double() @ linear.bias.double()).to(kernel)
        if module.conv.bias is not None:
            state[f'{conv_key}.bias'] = state[f'{conv_key}.bias'] + bias
        elif isinstance(module.norm, _BatchNorm) and module.norm.running_mean is not None:
            mean = f'{key}.{module.norm_name}.running_mean'
            state[mean] = state[mean] - bias
        else:
            raise ValueError(
                f'the bias of the linear conv before {place} of {type(head).__name__} can not be '
                f'merged through its {type(module.norm).__name__}; through a batch norm it could'
            )


@torch.no_grad()
def merged(kernel: Tensor, linear: Tensor) -> Tensor:
    """Kernel [K, C', ...] with the linear kernel [C', C, 1, 1] before it merged in, [K, C, ...]."""
    return torch.einsum('kd...,dc->kc...', kernel.double(), linear.flatten(1).double()).to(kernel)


@torch.no_grad()
def unmerged(linear: nn.Conv2d, kernel: Tensor, head_name: str) -> Dict[str, Tensor]:
    """The linear conv with which a plain `conv_seg` [K, C, ...] predicts the same under CAR.

    Args:
        linear (nn.Conv2d): From C to C' channels.
        kernel (Tensor): [K, C, ...].
        head_name (str): For the error.

    Returns:
        dict[str, Tensor]: `linear` [C', C, 1, 1] and `conv_seg` [K, C', ...]: the identity and
        the kernel itself, or where C' < C an orthonormal basis of C' directions that holds all
        K rows of the kernel, and the kernel in that basis.

    Raises:
        ValueError: C' directions don't hold all rows.
    """
    into, out_of = linear.in_channels, linear.out_channels
    if into == out_of:
        return dict(linear=torch.eye(into).to(kernel)[..., None, None], conv_seg=kernel)
    rows = kernel.flatten(2).transpose(1, 2).flatten(0, 1).double()
    if len(rows) > out_of:
        raise ValueError(
            f'{head_name}: a plain conv_seg of {len(rows)} outputs may need more than {out_of} '
            f'channels; set max_channels to at least {min(into, len(rows))}'
        )
    fill = torch.randn(
        into,
        out_of - len(rows),
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(0),
    ).to(rows.device)
    basis = torch.linalg.qr(torch.cat([rows.t(), fill], dim=1))[0].t()  # [C', C]
    return dict(
        linear=basis.to(kernel)[..., None, None],
        conv_seg=torch.einsum('kc...,dc->kd...', kernel.double(), basis).to(kernel),
    )
