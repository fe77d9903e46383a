"""The few seams that let MMSegmentation 1.2 run on today's PyTorch."""
import importlib.util
import sys
import types


def _stub_compiled_ops():
    if importlib.util.find_spec('mmcv._ext') is not None:
        return
    stub = types.ModuleType('mmcv._ext')

    def __getattr__(name):
        if name.startswith('__'):
            raise AttributeError(name)

        def missing(*args, **kwargs):
            raise RuntimeError(f'{name} is a compiled op: install mmcv')
        return missing
    stub.__getattr__ = __getattr__
    sys.modules['mmcv._ext'] = stub


def _allow_checkpoint_classes():
    import numpy as np
    import torch
    from mmengine.logging import HistoryBuffer
    torch.serialization.add_safe_globals([
        HistoryBuffer, np.core.multiarray._reconstruct, np.ndarray, np.dtype,
        np.core.multiarray.scalar, np.dtypes.Float64DType, np.dtypes.Int64DType])


def apply():
    _stub_compiled_ops()
    _allow_checkpoint_classes()
