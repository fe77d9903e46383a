"""The configs that come with the package: where they are, and how to copy one as a base.

mmengine resolves `_base_ = 'PACKAGE::...'` only for a fixed list of packages. A copy of a shipped
config with all of its bases merged in is one file that needs no other, for a repository of your own
or a cluster that has only the installed package.
"""

import difflib
import re
from pathlib import Path
from typing import Iterable, List

from mmengine.config import Config

from .errors import InputError
from .written_files import make_folder

PACKAGE = Path(__file__).resolve().parent


def configs_folder() -> Path:
    """Folder of the shipped configs: in the wheel, or beside the package in a checkout."""
    inside = PACKAGE / '.mim' / 'configs'
    return inside if inside.is_dir() else PACKAGE.parent / 'configs'


def config_files() -> List[Path]:
    """Files of all shipped configs, without the bases that they are made of."""
    return sorted(configs_folder().glob('[!_]*/*.py'))


def close_matches(path: str, files: Iterable[Path]) -> List[Path]:
    """Those of `files` with a name similar to that of `path`, at most five, the likest first.

    Names are similar that are spelt alike or hold the same words: config names are long, and one
    that is typed from memory is mostly too short.
    """
    wanted = Path(path).stem
    words = re.findall('[^_-]+', wanted)

    def likeness(file: Path) -> float:
        spelling = difflib.SequenceMatcher(None, wanted, file.stem).ratio()
        return max(spelling, sum(word in file.stem for word in words) / max(len(words), 1))

    ranked = sorted(files, key=lambda file: (-likeness(file), str(file)))
    return [file for file in ranked if likeness(file) >= 0.6][:5]


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
    if target.is_dir():
        raise InputError(f'{target} is a folder; name a file in it')
    if target.exists():
        raise InputError(f'{target} is there already; remove it, or give another name')
    make_folder(target.parent)
    config.dump(str(target))
    return target
