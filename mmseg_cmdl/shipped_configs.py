"""The configs that come with the package: where they are, and how to copy one as a base.

mmengine resolves `_base_ = 'PACKAGE::...'` only for a fixed list of packages. A copy of a shipped
config with all of its bases merged in is one file that needs no other, for a repository of your own
or a cluster that has only the installed package.
"""

from pathlib import Path
from typing import List

from mmengine.config import Config

from .errors import InputError
from .launch import close_matches, config_files


def config_names() -> List[str]:
    """Names of all shipped configs, without folder and suffix, sorted."""
    return sorted(path.stem for path in config_files())


def config_path(name: str) -> Path:
    """Where a shipped config is.

    Args:
        name (str): Its name, with or without `.py`.

    Raises:
        InputError: There is none of that name; names those like it.
    """
    file = Path(name).name.removesuffix('.py') + '.py'
    for path in config_files():
        if path.name == file:
            return path
    near = close_matches(file, config_files())
    hint = f'; there are {", ".join(path.stem for path in near)}' if near else ''
    raise InputError(
        f'no shipped config is called {name!r}{hint}. `python -m mmseg_cmdl config` lists all'
    )


def write_config(name: str, out: str) -> Path:
    """Writes a shipped config, its bases merged in, to one file.

    Args:
        name (str): See :func:`config_path`.
        out (str): Path of the file, which mustn't be there yet; its folder is made.

    Raises:
        InputError: There is no such config, or `out` is there.
    """
    config = Config.fromfile(str(config_path(name)), import_custom_modules=False)
    target = Path(out)
    if target.exists():
        raise InputError(f'{target} is there already; remove it, or give another name')
    target.parent.mkdir(parents=True, exist_ok=True)
    config.dump(str(target))
    return target
