"""The few seams that let MMSegmentation run on today's PyTorch and without compiled ops.

Each function is one seam: it does nothing where it isn't needed, may be called any number of times
and replaces nothing of MMSegmentation, mmengine, mmcv or PyTorch.

======================== ================================= =====================================
seam                     works around                      can go when
======================== ================================= =====================================
``stand_in_for_mmcv_ext`` ``import mmseg.models`` needs     MMSegmentation imports mmcv.ops only
                         mmcv's compiled ops, even for     where an op is used, as its maintained
                         models that use none of them      fork does
``allow_mmengine_types`` mmengine's checkpoints hold       mmengine registers these types itself,
                         NumPy log histories, which        or stores plain numbers
                         ``torch.load`` refuses since 2.6
``swaps_channels``       SegDataPreProcessor keeps it      one family is left
                         under one name in OpenMMLab's
                         MMSegmentation and under another
                         in its maintained fork
======================== ================================= =====================================
"""

import functools
import importlib
import importlib.util
import pickle
import sys
import types
from importlib.machinery import ModuleSpec

import numpy as np
import torch

from . import environment

EXT = 'mmcv._ext'


def _missing_op(name, *args, **kwargs):
    raise RuntimeError(
        f'`{name}` is a compiled op of mmcv, and the mmcv installed here has none (mmcv-lite); '
        f'run: {environment.compiled_mmcv_command()} (builds it with a C++ compiler, and with '
        'nvcc for CUDA), or for older PyTorch: mim install mmcv'
    )


class _ExtStandIn(types.ModuleType):
    """``mmcv._ext`` without ops: every public name is a function that says what to install.

    The spec without a loader is what mmcv and mmengine look at to learn that there are no compiled
    ops (``mmcv_full_available``), so their own branches for mmcv-lite stay in force. The maintained
    fork's mmengine takes any spec for a sign of them; it then looks for modules of mmcv's
    SyncBatchNorm and deformable convs, finds these classes, and no such module.
    """

    def __init__(self):
        super().__init__(EXT, 'Stand-in for the compiled ops of mmcv, see mmseg_cmdl.compat.')
        self.__spec__ = ModuleSpec(EXT, loader=None)

    def __getattr__(self, name):
        if name.startswith('_'):
            raise AttributeError(f'module {EXT!r} has no attribute {name!r}')
        return functools.partial(_missing_op, name)

    # mmcv.utils.collect_env() calls these two; it has the same value where mmcv.ops is missing.
    @staticmethod
    def get_compiler_version():
        return 'n/a'

    @staticmethod
    def get_compiling_cuda_version():
        return 'n/a'


def stand_in_for_mmcv_ext():
    """Let ``mmcv.ops`` be imported where mmcv has no compiled ops (mmcv-lite).

    ``mmseg.models`` imports mmcv.ops for a handful of heads and losses. Much of mmcv.ops is plain
    PyTorch and works (CrissCrossAttention, point_sample, PSAMask's module); a compiled op raises a
    RuntimeError with its name when it is called, not before.

    Returns:
        bool: whether the stand-in is in place.

    Raises:
        ImportError: if there are compiled ops that don't load, say those of another PyTorch.
    """
    if isinstance(sys.modules.get(EXT), _ExtStandIn):
        return True
    if importlib.util.find_spec(EXT) is None:
        sys.modules[EXT] = _ExtStandIn()
        return True
    try:
        importlib.import_module(EXT)
    except ImportError as error:
        raise ImportError(
            f'the compiled ops of mmcv {environment.version_of("mmcv")} do not load with torch '
            f'{torch.__version__} ({error}); run: pip install --no-deps --force-reinstall '
            f"--no-binary mmcv 'mmcv>=2.0.0,<2.2.0' to build them anew, or: "
            f'{environment.install_command("mmcv")} to do without'
        ) from error
    return False


def statistics_method(owner, name):
    """``getattr`` for what mmengine's checkpoints need of it: HistoryBuffer's statistics methods.

    A pickled HistoryBuffer refers to its methods ``min``, ``max``, ``mean`` and ``current`` as
    ``getattr(HistoryBuffer, name)``. Allowing ``getattr`` itself would let a file reach any
    attribute of anything allowed.

    Raises:
        pickle.UnpicklingError: for any other attribute, unless the caller of ``torch.load`` has put
            ``getattr`` on PyTorch's list as well.
    """
    from mmengine.logging import HistoryBuffer

    if getattr in torch.serialization.get_safe_globals():
        return getattr(owner, name)
    if owner is HistoryBuffer and name in ('min', 'max', 'mean', 'current'):
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(
        f'getattr({owner!r}, {name!r}) is refused: mmseg_cmdl allows getattr only for the '
        "statistics methods of mmengine's HistoryBuffer"
    )


def checkpoint_types():
    """What a checkpoint of mmengine's Runner holds besides tensors and plain Python.

    The message hub's log histories are HistoryBuffers around two NumPy arrays and four of their own
    methods; best scores are NumPy scalars, in single precision those of the metrics. On Windows
    NumPy 1 counts in 32 bits. NumPy 2 renamed the module of two functions, and a checkpoint carries
    the name that its writer's NumPy had: both names lead to the function that is here.

    Types go by their names too: the mmengine of the maintained fork allows some of them while it
    loads a file and takes them off PyTorch's list afterwards, and an entry (object, name) of ours
    is another one than the bare object of theirs.

    Returns:
        list: entries for ``torch.serialization.add_safe_globals``: (object, name).
    """
    from mmengine.logging import HistoryBuffer

    core = importlib.import_module('numpy._core' if hasattr(np, '_core') else 'numpy.core')
    functions = (core.multiarray._reconstruct, core.multiarray.scalar)
    scalars = (type(np.dtype(name)) for name in ('float32', 'float64', 'int32', 'int64'))
    return [
        (statistics_method, 'builtins.getattr'),
        *(
            (cls, f'{cls.__module__}.{cls.__qualname__}')
            for cls in (HistoryBuffer, np.ndarray, np.dtype, *scalars)
        ),
        *(
            (function, f'{package}.multiarray.{function.__name__}')
            for function in functions
            for package in ('numpy.core', 'numpy._core')
        ),
    ]


def allow_mmengine_types():
    """Let ``torch.load`` read mmengine's own checkpoints with its weights-only check left on.

    mmengine calls ``torch.load(filename, map_location=...)``, which checks by default since
    PyTorch 2.6. The types are plain data, put on PyTorch's list of safe globals; anything
    else in a file is refused as before. Before 2.6 the check is off and nothing is done.

    Returns:
        bool: whether the types were put on the list.
    """
    from packaging.version import Version

    if Version(torch.__version__) < Version('2.6'):
        return False
    torch.serialization.add_safe_globals(checkpoint_types())
    return True


def swaps_channels(preprocessor):
    """Whether a data preprocessor changes BGR to RGB, or back.

    Args:
        preprocessor (nn.Module): A SegDataPreProcessor of either family, or any other, which then
            swaps nothing.
    """
    names = ('channel_conversion', '_channel_conversion')
    return any(getattr(preprocessor, name, False) for name in names)


def apply():
    """Put every seam in place that this environment needs."""
    stand_in_for_mmcv_ext()
    allow_mmengine_types()
