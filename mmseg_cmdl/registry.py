"""MMSegmentation's registries, which take a class of ours again when its module is loaded again.

mmengine refuses a name that is there. In a notebook, `importlib.reload`, `%autoreload` and a fresh
import after `del sys.modules[...]` run our decorators twice; the newer class is the one that is
meant. A name that somebody else has registered is refused as ever.
"""

from typing import Any, Callable

from mmengine.registry import Registry
from mmseg import registry


class _Reloadable:
    """A registry as it is, but for what `register_module` does with a class that is there."""

    def __init__(self, registry: Registry):
        self._registry = registry

    def __getattr__(self, name: str) -> Any:
        return getattr(self._registry, name)

    def register_module(self) -> Callable[[type], type]:
        def add(cls: type) -> type:
            there = self._registry.module_dict.get(cls.__name__)
            again = there is not None and there.__module__ == cls.__module__
            return self._registry.register_module(module=cls, force=again)

        return add


DATASETS = _Reloadable(registry.DATASETS)
HOOKS = _Reloadable(registry.HOOKS)
METRICS = _Reloadable(registry.METRICS)
MODELS = _Reloadable(registry.MODELS)
TRANSFORMS = _Reloadable(registry.TRANSFORMS)
