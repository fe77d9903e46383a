"""Files made by someone unkind, each loaded in a process of its own; prints how each ended.

python -m tests.guarantees.hostile_files FOLDER
"""

import copyreg
import importlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

core = importlib.import_module('numpy._core' if hasattr(np, '_core') else 'numpy.core')


class Reduced:
    """Pickles as function(*arguments), filled by a state."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


class New:
    """Pickles as cls.__new__(cls, *arguments)."""

    def __init__(self, cls, *arguments):
        self.cls, self.arguments = cls, arguments

    @property
    def __class__(self):
        return self.cls

    def __reduce__(self):
        return copyreg.__newobj__, (self.cls, *self.arguments)


def dtype(code, *state):
    return Reduced(np.dtype, code, False, True, state=state or None)


def array(kind, shape, data, fortran=False):
    return Reduced(
        core.multiarray._reconstruct, np.ndarray, (0,), b'b', state=(1, shape, kind, fortran, data)
    )


#: Objects whose flags say that they hold no pointers.
POINTERS = dtype('O8', 3, '|', None, None, None, -1, -1, 0)
FLOATS = dtype('f8', 3, '<', None, None, None, -1, -1, 0)
#: Plain floats whose flags say that they are pointers.
FALSE_POINTERS = dtype('f8', 3, '<', None, None, None, 8, 8, 63)
NOISE = bytes(range(65, 73)) * 4


def history(**state):
    from mmengine.logging import HistoryBuffer

    return Filled(HistoryBuffer, state)


class Filled(New):
    """Pickles as cls.__new__(cls), filled by a state."""

    def __reduce__(self):
        return copyreg.__newobj__, (self.cls,), self.arguments[0]


def hostile(marker):
    """Name to content; what runs leaves the file `marker`."""
    ones = np.ones(2)
    return {
        'objects over bytes': array(POINTERS, (4,), NOISE),
        'objects over bytes, in columns': array(POINTERS, (2, 2), NOISE, True),
        'an object scalar': Reduced(core.multiarray.scalar, POINTERS, NOISE[:8]),
        'flags of pointers': array(FALSE_POINTERS, (4,), NOISE),
        'a scalar with flags of pointers': Reduced(
            core.multiarray.scalar, FALSE_POINTERS, NOISE[:8]
        ),
        'more shape than bytes': array(FLOATS, (1 << 40,), NOISE),
        'a negative shape': array(FLOATS, (-4,), NOISE),
        'an overflowing shape': array(FLOATS, (1 << 32, 1 << 32), NOISE),
        'a shape of no numbers': array(FLOATS, ('4',), NOISE),
        'bytes that are none': array(FLOATS, (4,), [1, 2, 3, 4]),
        'a structure': array(dtype('V32'), (1,), NOISE),
        'fields': array(
            dtype('V8', 3, '|', None, ('a',), {'a': (np.dtype('O'), 0)}, 8, 1, 63), (4,), NOISE
        ),
        'a new array of any size': New(np.ndarray, (1 << 34,), 'O'),
        'a new array over bytes': New(np.ndarray, (4,), 'O', NOISE),
        'text in a history': history(max_length=3, _log_history='x', _count_history='y'),
        'another mean': history(
            max_length=3, _log_history=ones, _count_history=ones, statistics_methods={'mean': 3}
        ),
        'a call': Reduced(open, marker, 'w'),
        'a shell': Reduced(os.system, f'touch {marker}'),
        'eval': Reduced(eval, f'open({marker!r}, "w")'),
    }  # fmt: skip


def in_a_child(function):
    """How a forked process ended that runs `function`: its exit code, or minus the signal."""
    child = os.fork()
    if child == 0:
        code = 9
        try:
            with open(os.devnull, 'w') as nowhere:
                sys.stdout = sys.stderr = nowhere
                code = function()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def load(path):
    """3 if the file is refused, 4 if that is another error, 0 if it is loaded and looked at."""
    import gc
    import pickle

    try:
        content = torch.load(path)
        repr(content)
        del content
        gc.collect()
    except pickle.UnpicklingError:
        return 3
    except Exception:
        return 4
    return 0


def tool_main(name, argv):
    from tests.paths import TOOLS, load_script

    try:
        load_script(TOOLS / f'{name}.py').main([str(word) for word in argv])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def main(folder):
    """Prints, as JSON, how each file ended in torch.load and in tools/test.py."""
    import mmseg_cmdl  # noqa: F401
    from tests import tiny

    torch.set_num_threads(1)
    folder = Path(folder)
    config = tiny.write_config(folder / 'c.py', tiny.write_dataset(folder / 'data', train=1, val=1))
    ended = {}
    for number, (name, content) in enumerate(hostile(str(folder / 'RAN')).items()):
        path = folder / f'{number}.pth'
        torch.save(dict(state_dict=content), path)
        tool = in_a_child(
            lambda path=path: tool_main('test', [config, path, '--work-dir', folder / 'work'])
        )
        ended[name] = [in_a_child(lambda path=path: load(path)), tool, (folder / 'RAN').exists()]
    print(json.dumps(ended))


if __name__ == '__main__':
    main(sys.argv[1])
