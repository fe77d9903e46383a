"""Files and folders that are whole or as they were: written beside, then renamed into place."""

import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Iterable, Iterator, Optional, Sequence, Union

from .errors import InputError


@contextmanager
def written_beside(path: Union[str, Path]) -> Iterator[Path]:
    """Gives a path of the same name in a hidden folder beside, and moves it into place at the end.

    What else was written into that folder (the weights of a large ONNX file) comes along, before
    the file itself. After an error, or an interruption, what stood at the path is there as before.

    Args:
        path (str | Path): The file to be. Its folder is made.

    Raises:
        InputError: The path is a folder, or there is nothing to be written to.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f'{path} is a folder; name a file in it')
    folder = make_folder(path.parent)
    try:
        staging = Path(tempfile.mkdtemp(prefix=f'.{path.name}_', dir=folder))
    except OSError as error:
        raise InputError(f'{path} can not be written: {error.strerror or error}') from error
    try:
        yield staging / path.name
        for file in sorted(staging.iterdir(), key=lambda file: file.name == path.name):
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def make_folder(path: Union[str, Path]) -> Path:
    """Makes a folder and those above it, where they aren't there.

    Raises:
        InputError: Something else has the name, or it isn't permitted.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise InputError(f'{path} is a file, not a folder; name another') from error
    except OSError as error:
        raise InputError(
            f'the folder {path} can not be made: {error.strerror or error}; name another'
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f'nothing can be written into the folder {path}: Permission denied')
    return path


def check_folder(path: Union[str, Path]) -> None:
    """Asks whether :func:`make_folder` could make it, and leaves nothing.

    Raises:
        InputError: As :func:`make_folder`.
    """
    path = Path(path)
    new = [folder for folder in (path, *path.absolute().parents) if not folder.exists()]
    make_folder(path)
    for folder in new:
        folder.rmdir()


def refuse_same(
    out: Union[str, Path], inputs: Iterable[Optional[str]], option: str = 'OUT'
) -> None:
    """Refuses to write over what is read.

    Args:
        out (str | Path): File or folder to write.
        inputs (Iterable[str | Path | None]): Files or folders that are read; None are left out.
        option (str): What the argument of `out` is called.

    Raises:
        InputError: Both are the same.
    """
    for path in inputs:
        if path is not None and os.path.realpath(out) == os.path.realpath(path):
            raise InputError(f'{option} is {path}, which is also the input; name another')


def refuse_inside(paths: Iterable, out_dir: Union[str, Path], names: Sequence[str]) -> None:
    """Refuses inputs that lie in the sub-folders `names` of `out_dir`, which would be replaced.

    Raises:
        InputError: Names the first.
    """
    going = [os.path.join(os.path.realpath(out_dir), name) for name in names]
    for path in paths:
        for folder in going:
            # not resolved: a link to what lies there goes with the folder
            if (os.path.abspath(path) + os.sep).startswith(folder + os.sep) or (
                os.path.realpath(path) + os.sep
            ).startswith(folder + os.sep):
                raise InputError(
                    f'{path} lies in {out_dir}, where {folder} would be replaced; give another '
                    '--out-dir'
                )


def refuse_existing(out_dir: Union[str, Path], names: Sequence[str]) -> None:
    """Refuses to replace the sub-folders `names` of `out_dir`.

    Raises:
        InputError: Names those that are there.
    """
    existing = [str(Path(out_dir, name)) for name in names if Path(out_dir, name).exists()]
    if existing:
        raise InputError(
            f'{" and ".join(existing)} exist; pass --overwrite to replace them, or another '
            '--out-dir'
        )


@contextmanager
def replaced_folders(
    out_dir: Union[str, Path], names: Sequence[str], splits: Sequence[str] = ()
) -> Iterator[Path]:
    """Gives a hidden folder to fill `names` in, and moves these into `out_dir` at the end.

    After an error, or an interruption, what was there before is there again; a folder `out_dir`
    that wasn't is gone.

    Args:
        out_dir (str | Path): Gets the folders `names`; those that it has are replaced.
        names (Sequence[str]): Sub-folders.
        splits (Sequence[str]): Folders that are made in each of these.
    """
    out_dir = Path(out_dir)
    created = not out_dir.exists()
    make_folder(out_dir)
    staging = Path(tempfile.mkdtemp(prefix='.converting_', dir=out_dir))
    try:
        for name, split in product(names, splits):
            (staging / name / split).mkdir(parents=True)
        yield staging
        _install(staging, out_dir, names)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if created:
            with suppress(OSError):  # of a folder that holds the result
                out_dir.rmdir()


def _install(staging: Path, out_dir: Path, names: Sequence[str]) -> None:
    old = staging / 'old'
    old.mkdir()
    undo = []
    try:
        for name in names:
            target = out_dir / name
            if target.exists():
                target.rename(old / name)
                undo.append((old / name, target))
            (staging / name).rename(target)
            undo.append((target, staging / name))
    except BaseException:
        for source, target in reversed(undo):
            source.rename(target)
        raise
