"""Watch which operations a piece of code asks of the device."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Each of these makes the host wait for the device, or has an output whose size depends on values.
SYNCHRONISING = (
    '_local_scalar_dense',
    'nonzero',
    'unique',
    '_unique',
    'masked_select',
    'is_nonzero',
    'equal',
    'bincount',
)


class CountOps(TorchDispatchMode):
    """Counts operations and collects the names of those that synchronise."""

    def __init__(self):
        super().__init__()
        self.total, self.synchronising = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.total += 1
        name = func.name().split('::')[-1]
        by_mask = name.startswith(('index.Tensor', 'index_put')) and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        base = name.split('.')[0]
        if by_mask or base in SYNCHRONISING or base.startswith(('unique', '_unique')):
            self.synchronising.append(name)
        return func(*args, **(kwargs or {}))


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that any operation gives."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return out


class SumsOverMaps(TorchDispatchMode):
    """Calls of `nll_loss2d` that sum up, which CUDA has no deterministic form of."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() == 'aten::nll_loss2d_forward' and args[3] != 0:
            self.found.append(args)
        return func(*args, **(kwargs or {}))
