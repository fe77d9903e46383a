"""What PyTorch's compiler is doing."""

import torch


def compiler_is(state: str) -> bool:
    """`torch.compiler.is_compiling()` or another of its kind.

    Args:
        state (str): 'compiling' or 'exporting'.

    Returns:
        bool: False where this PyTorch can't be asked: 'compiling' needs 2.3, 'exporting' 2.7.
    """
    ask = getattr(getattr(torch, 'compiler', None), f'is_{state}', None)
    return ask is not None and ask()
