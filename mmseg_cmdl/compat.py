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
``count_attention``      mmengine's counter of FLOPs      mmengine counts it
                         (MMSegmentation's get_flops)
                         leaves out scaled_dot_product_
                         attention
``swaps_channels``       SegDataPreProcessor keeps it      one family is left
                         under one name in OpenMMLab's
                         MMSegmentation and under another
                         in its maintained fork
======================== ================================= =====================================
"""

import functools
import importlib
import importlib.util
import math
import pickle
import sys
import types
from importlib.machinery import ModuleSpec
from typing import Any, Callable, Dict, NoReturn, Sequence, Tuple

import numpy as np
import torch
from torch import nn

from . import environment

EXT = 'mmcv._ext'


def _missing_op(name: str, *args: Any, **kwargs: Any) -> NoReturn:
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

    def __init__(self) -> None:
        super().__init__(EXT, 'Stand-in for the compiled ops of mmcv, see mmseg_cmdl.compat.')
        self.__spec__ = ModuleSpec(EXT, loader=None)

    def __getattr__(self, name: str) -> Callable:
        if name.startswith('_'):
            raise AttributeError(f'module {EXT!r} has no attribute {name!r}')
        return functools.partial(_missing_op, name)

    # mmcv.utils.collect_env() calls these two; it has the same value where mmcv.ops is missing.
    @staticmethod
    def get_compiler_version() -> str:
        return 'n/a'

    @staticmethod
    def get_compiling_cuda_version() -> str:
        return 'n/a'


def stand_in_for_mmcv_ext() -> bool:
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
            f"--no-binary mmcv 'mmcv{environment.COMPILED_MMCV}' to build them anew, or: "
            f'{environment.install_command("mmcv")} to do without'
        ) from error
    return False


def _others_allow(thing: Any) -> bool:
    """Whether somebody else has put the real thing on PyTorch's list, as the fork's mmengine does
    while it loads a file. Our stand-in then does what that would, since one of both gets the name.
    """
    return thing in torch.serialization.get_safe_globals()


def _refuse(what: str) -> NoReturn:
    raise pickle.UnpicklingError(
        f'{what} is refused: mmseg_cmdl allows only what the checkpoints of mmengine hold, plain '
        'arrays of float32, float64, int32 or int64 in a HistoryBuffer'
    )


def statistics_method(owner: Any, name: str) -> Any:
    """Stands for ``getattr``: HistoryBuffer's statistics methods and nothing else.

    A pickled HistoryBuffer refers to its methods ``min``, ``max``, ``mean`` and ``current`` as
    ``getattr(HistoryBuffer, name)``. Allowing ``getattr`` itself would let a file reach any
    attribute of anything allowed.

    Raises:
        pickle.UnpicklingError: for any other attribute, unless the caller of ``torch.load`` has put
            ``getattr`` on PyTorch's list as well.
    """
    from mmengine.logging import HistoryBuffer

    if _others_allow(getattr):
        return getattr(owner, name)
    is_history = isinstance(owner, type) and issubclass(owner, HistoryBuffer)
    if not is_history or name not in STATISTICS:
        _refuse(f'getattr({owner!r}, {name!r})')
    return getattr(HistoryBuffer, name)


class StoredKind:
    """Stands for a ``numpy.dtype`` in a file: one of four plain kinds, never a dtype to change.

    ``numpy.dtype.__setstate__`` believes its flags, by which an array of bytes becomes one of
    pointers.
    """

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str) or code not in ('f4', 'f8', 'i4', 'i8'):
            _refuse(f'a NumPy dtype {code!r}')
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        # version, byte order, and five of fields, sizes and flags, which plain kinds don't have
        plain = isinstance(state, tuple) and state[2:8] == (None, None, None, -1, -1, 0)
        if not plain or state[1] not in ('<', '>', '=', '|'):
            _refuse(f'a NumPy dtype with the state {state!r}')
        self.dtype = self.dtype.newbyteorder(state[1])


def stored_dtype(*args: Any) -> Any:
    """Stands for ``numpy.dtype``."""
    if _others_allow(np.dtype):
        return np.dtype(*args)
    return StoredKind(args[0] if args else None)


def _values(kind: Any, data: Any, shape: Any) -> np.ndarray:
    """A plain array of `shape` over a copy of `data`, whose size must be that of the shape."""
    if isinstance(kind, np.dtype):  # others allow it; its name is all that is taken of it
        code = kind.str[1:]
        kind = StoredKind(code)
    if not isinstance(kind, StoredKind) or not isinstance(data, bytes):
        _refuse(f'an array of {type(kind).__name__} over {type(data).__name__}')
    whole = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    if not whole or len(data) != math.prod(shape) * kind.dtype.itemsize:
        _refuse(f'an array of shape {shape!r} over {len(data)} bytes')
    return np.frombuffer(data, kind.dtype).copy().reshape(shape)


class StoredArray(np.ndarray):
    """Stands for ``numpy.ndarray`` in a file: filled by its pickled state alone, and checked.

    It pickles as the plain array that it is.
    """

    def __new__(cls, *args: Any) -> 'StoredArray':
        if args:
            _refuse(f'a new array of {args!r:.80}')
        return np.ndarray.__new__(cls, (0,), np.float64)

    def __reduce__(self) -> Any:
        return self.view(np.ndarray).__reduce__()

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[3], bool):
            _refuse('an array without its five parts')
        _, shape, kind, is_fortran, data = state
        values = _values(kind, data, shape[::-1] if is_fortran else shape)
        # its own state again, of parts that are plain by now
        super().__setstate__((1, shape, values.dtype, is_fortran, values.tobytes()))


def stored_array(kind: Any, shape: Any, typecode: Any) -> StoredArray:
    """Stands for NumPy's ``_reconstruct``: an array of nothing, which its state will fill."""
    return StoredArray()


def stored_scalar(kind: Any, data: Any) -> Any:
    """Stands for NumPy's ``scalar``: a number of one of the plain kinds."""
    return _values(kind, data, (1,))[0]


def _stored_history() -> type:
    """The class that stands for mmengine's HistoryBuffer in a file, and becomes it when filled."""
    from mmengine.logging import HistoryBuffer

    class StoredHistory(HistoryBuffer):
        def __init__(self) -> None:
            _refuse('a call of HistoryBuffer')

        def __setstate__(self, state: Any) -> None:
            if not isinstance(state, dict) or not set(state) <= HISTORY_PARTS:
                _refuse('a HistoryBuffer of other parts')
            arrays: Dict[str, Any] = {
                key: state.get(key) for key in ('_log_history', '_count_history')
            }
            for key, array in arrays.items():
                if not isinstance(array, np.ndarray) or array.ndim != 1:
                    _refuse(f'a HistoryBuffer whose {key} is a {type(array).__name__}')
                arrays[key] = array.view(np.ndarray)
            if len(arrays['_log_history']) != len(arrays['_count_history']):
                _refuse('a HistoryBuffer whose values and counts differ in number')
            length, methods = state.get('max_length'), state.get('statistics_methods', {})
            if type(length) is not int or length < 1 or not isinstance(methods, dict):
                _refuse(f'a HistoryBuffer of length {length!r}')
            for name, method in methods.items():
                # a file doesn't get to say what mean() is
                if method is not getattr(HistoryBuffer, str(name), None) or name not in STATISTICS:
                    _refuse(f'a HistoryBuffer with another {name!r}')
            self.__class__ = HistoryBuffer
            self.__setstate__({'max_length': length, **arrays})

    return StoredHistory


STATISTICS = ('min', 'max', 'mean', 'current')
HISTORY_PARTS = {'max_length', '_log_history', '_count_history', 'statistics_methods'}


@functools.cache
def checkpoint_types() -> Tuple[tuple, ...]:
    """What stands for the parts of a checkpoint of mmengine's Runner that PyTorch doesn't know.

    The message hub's log histories are HistoryBuffers around two NumPy arrays and four of their own
    methods; best scores are NumPy scalars, in single precision those of the metrics. On Windows
    NumPy 1 counts in 32 bits. NumPy 2 renamed the module of two functions, and a checkpoint carries
    the name that its writer's NumPy had: both names lead to the function that is here.

    None of them is NumPy's own: NumPy trusts what it unpickles, so that its ``_reconstruct`` and
    ``dtype`` together make an array of objects out of bytes, and the interpreter crashes.

    Types go by their names too: the mmengine of the maintained fork allows the real ones while it
    loads a file and takes them off PyTorch's list afterwards, and either gets the name then. Names
    without a dot can't be written in a file: they are for what is made, not asked for.

    Returns:
        tuple: entries for ``torch.serialization.add_safe_globals``: (object, name).
    """
    return (
        (statistics_method, 'builtins.getattr'),
        (_stored_history(), 'mmengine.logging.history_buffer.HistoryBuffer'),
        (StoredArray, 'numpy.ndarray'),
        (StoredArray, 'array'),
        (stored_dtype, 'numpy.dtype'),
        (StoredKind, 'kind'),
        *(
            (function, f'{package}.multiarray.{name}')
            for name, function in (('_reconstruct', stored_array), ('scalar', stored_scalar))
            for package in ('numpy.core', 'numpy._core')
        ),
        # where others allow numpy.dtype itself, the kinds that they forgot
        *((type(np.dtype(code)), code) for code in ('f4', 'f8', 'i4', 'i8')),
    )


def allow_mmengine_types() -> bool:
    """Let ``torch.load`` read mmengine's own checkpoints with its weights-only check left on.

    mmengine calls ``torch.load(filename, map_location=...)``, which checks by default since
    PyTorch 2.6. What is put on PyTorch's list of safe globals makes plain data and checks it;
    anything else in a file is refused as before. Before 2.6 the check is off and nothing is done.

    Returns:
        bool: whether the types were put on the list.
    """
    from packaging.version import Version

    if Version(torch.__version__) < Version('2.6'):
        return False
    torch.serialization.add_safe_globals(list(checkpoint_types()))
    return True


def _attention_flops(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Multiply-adds of `scaled_dot_product_attention`: query x key and weights x value."""
    query, key, value = (handle.type().sizes() for handle in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def count_attention() -> None:
    """Give mmengine's counter a handle for `scaled_dot_product_attention`, where it has none."""
    try:
        from mmengine.analysis import complexity_analysis

        handles = complexity_analysis._DEFAULT_SUPPORTED_FLOP_OPS
    except (ImportError, AttributeError):  # an mmengine that counts in another way
        return
    handles.setdefault('aten::scaled_dot_product_attention', _attention_flops)


def swaps_channels(preprocessor: nn.Module) -> bool:
    """Whether a data preprocessor changes BGR to RGB, or back.

    Args:
        preprocessor (nn.Module): A SegDataPreProcessor of either family, or any other, which then
            swaps nothing.
    """
    names = ('channel_conversion', '_channel_conversion')
    return any(getattr(preprocessor, name, False) for name in names)


def apply() -> None:
    """Put every seam in place that this environment needs."""
    stand_in_for_mmcv_ext()
    allow_mmengine_types()
    count_attention()
