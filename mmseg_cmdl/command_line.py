"""How tools end: one line and exit code 2 for a mistake, a traceback for a bug.

And the kinds of values that their options take, for `type=` of argparse, their progress bar and
their tables.
"""

import argparse
import functools
import math
import os
import sys
from multiprocessing import Pool
from typing import Any, Callable, Optional, Sequence

import torch
from mmengine.utils import track_progress
from prettytable import PrettyTable

from .errors import InputError

TRACEBACK = 'MMSEG_CMDL_TRACEBACK'


def tool(main: Callable) -> Callable:
    """Decorates the `main(argv=None)` of a tool; the one place where exceptions become exit codes.

    An :class:`InputError` and what the system says of a file (not found, no permission, no space)
    end in `error: ...` on stderr and exit code 2. Everything else is a bug and passes. With
    MMSEG_CMDL_TRACEBACK=1 in the environment everything does.
    """

    @functools.wraps(main)
    def run(argv: Optional[Sequence[str]] = None) -> Any:
        try:
            return main(argv)
        except InputError as error:
            cause: Exception = error
            message, code = str(error), getattr(error, 'exit_code', 2)
        except OSError as failure:
            if failure.filename is None or failure.strerror is None:
                raise
            message, code = f'{failure.filename}: {failure.strerror}', 2
            cause = failure
        if os.environ.get(TRACEBACK):
            raise cause
        print(f'error: {message}', file=sys.stderr, flush=True)
        end = SystemExit(f'error: {message}')
        end.code = code  # the interpreter takes this, and prints nothing more
        raise end

    return run


def with_progress(task: Callable, items: Sequence, nproc: int = 1) -> list:
    """The results of `task` for each item, in `nproc` processes, with a progress bar on stderr."""
    if nproc == 1:
        return track_progress(task, items, file=sys.stderr)
    # mmengine's parallel one would leave its workers writing after an error
    with Pool(nproc) as pool:
        results = pool.imap(task, items, chunksize=16)
        return track_progress(lambda result: result, (results, len(items)), file=sys.stderr)


def whole_number(minimum: int, maximum: float = math.inf) -> Callable:
    """Type of an option: an integer in a range."""

    def value(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f'{text!r} is not a whole number') from None
        if not minimum <= number <= maximum:
            raise argparse.ArgumentTypeError(_range(text, minimum, maximum))
        return number

    return value


def number(minimum: float = -math.inf, maximum: float = math.inf) -> Callable:
    """Type of an option: a finite number in a range."""

    def value(text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f'{text!r} is not a number') from None
        if not math.isfinite(found) or not minimum <= found <= maximum:
            raise argparse.ArgumentTypeError(_range(text, minimum, maximum))
        return found

    return value


def _range(text: str, minimum: float, maximum: float) -> str:
    if maximum == math.inf:
        return (
            f'must be at least {minimum}, got {text}'
            if minimum > -math.inf
            else (f'must be finite, got {text}')
        )
    return f'must be from {minimum} to {maximum}, got {text}'


positive = whole_number(1)
not_negative = whole_number(0)
seed = whole_number(0, 2**32 - 1)  # what NumPy takes


def device(text: str) -> str:
    """Type of an option: a device that is there, `cpu`, `cuda` or `cuda:1`."""
    try:
        wanted = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(
            f'{text!r} is not a device; take cpu, cuda or cuda:0'
        ) from None
    if wanted.type == 'cpu':
        return text
    backend = getattr(torch, wanted.type, None) or getattr(torch.backends, wanted.type, None)
    if not getattr(backend, 'is_available', lambda: False)():
        raise argparse.ArgumentTypeError(
            f'{text}: this PyTorch sees no {wanted.type.upper()} device; take cpu'
        )
    there = getattr(backend, 'device_count', lambda: 1)()
    if wanted.index is not None and wanted.index >= there:
        raise argparse.ArgumentTypeError(f'{text}: there are only {there}, counted from 0')
    return text


def text_table(header: Sequence[str], rows: Sequence[list]) -> str:
    """A table for the terminal; the first column flush left, numbers flush right."""
    table = PrettyTable(header)
    table.align = 'r'
    table.align[header[0]] = 'l'
    table.add_rows(rows)
    return str(table)
