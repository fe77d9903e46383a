"""mmseg_cmdl: class-level context for MMSegmentation.

Importing this package registers its heads, losses and datasets in MMSegmentation's registries
under names of their own; it replaces no entry. It must be imported before ``mmseg.models`` where
mmcv has no compiled ops. If a package is missing or of an unsupported version, an ImportError names
it, the supported versions, and the command that installs one.
"""

import sys

from .errors import InputError
from .version import __version__

__all__ = ['InputError', '__version__', 'register']


def register() -> None:
    """Check the versions of other packages, apply the patches that they need, register everything.

    Importing the package does this; a second call does nothing.

    Raises:
        ImportError: A package is missing or of an unsupported version; names the command to run.
    """
    from . import environment

    environment.check()

    from . import compat

    compat.apply()

    from . import datasets, engine, models  # noqa: F401


def _is_report() -> bool:
    """Whether this import is the first half of ``python -m mmseg_cmdl``.

    Python imports the package before it runs ``__main__``, which has to be able to tell what is
    wrong with an environment that this package can't be imported in. While the module behind ``-m``
    is being located, ``sys.argv[0]`` is ``-m``. Python 3.9 doesn't tell which module that is;
    there the import comes first and its error says what is wrong.
    """
    words = getattr(sys, 'orig_argv', [])
    return sys.argv[:1] == ['-m'] and ('-m', __name__) in zip(words, words[1:])


if not _is_report():
    register()
