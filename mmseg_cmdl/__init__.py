"""mmseg_cmdl: class-level context for MMSegmentation.

Importing this package registers its heads, losses and datasets in
MMSegmentation's registries under names of their own; it replaces no entry.
"""
from . import compat

compat.apply()

from . import datasets, models  # noqa: E402
from .version import __version__  # noqa: E402

__all__ = ['__version__', 'datasets', 'models']
