"""What configs of parts may be, made one."""

import difflib
import math
import warnings
from numbers import Integral, Real
from typing import Any, Dict, Iterable, List, Optional, Sequence, Union

from mmseg.registry import MODELS
from torch import Tensor


def as_list(configs: Union[dict, Sequence[dict], None]) -> List[dict]:
    """Configs of losses, say, of which there may be one, several or None.

    Raises:
        TypeError: One is no config.
    """
    if configs is None:
        return []
    found: list = list(configs) if isinstance(configs, (list, tuple)) else [configs]
    for cfg in found:
        if not isinstance(cfg, dict):
            raise TypeError(_no_config(cfg))
    return found


def _no_config(cfg: Any) -> str:
    return f"a part is configured by dict(type='...', ...), got {cfg!r}"


def registered_class(cfg: dict) -> Optional[type]:
    """The class (or function) that `cfg` would build; None if no such name is registered.

    Raises:
        TypeError: It is no config.
    """
    if not isinstance(cfg, dict) or 'type' not in cfg:
        raise TypeError(_no_config(cfg))
    cls = cfg['type']
    return MODELS.get(cls) if isinstance(cls, str) else cls


def did_you_mean(names: Iterable[str], known: Iterable[str]) -> str:
    """'; did you mean ...?' for names that are spelt like known ones, else nothing."""
    known = list(known)
    near = [match for name in sorted(names) for match in difflib.get_close_matches(name, known, 1)]
    return f'; did you mean {" and ".join(near)}?' if near else ''


def add_loss(losses: Dict[str, Tensor], name: str, value: Tensor) -> None:
    """Enters a loss under its name; losses of one name are summed, as MMSegmentation does."""
    losses[name] = losses[name] + value if name in losses else value


def check_finite(owner: object, **options: Optional[float]) -> None:
    """Refuses options that aren't finite numbers; NaN passes any comparison such as `x <= 0`.

    Args:
        owner (object): Object that has the options; messages name its class.
        **options: Name and value; None for one that is left to its default.

    Raises:
        ValueError: Names the option.
    """
    for name, value in options.items():
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if value is not None and not (is_number and math.isfinite(value)):
            raise ValueError(
                f'{type(owner).__name__}: {name} must be a finite number, got {value!r}'
            )


def check_counts(owner: object, **options: int) -> None:
    """Refuses options that aren't integers of at least 1.

    Args:
        owner (object): Object that has the options; messages name its class.
        **options: Name and value.

    Raises:
        ValueError: Names the option.
    """
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(
                f'{type(owner).__name__}: {name} must be an integer of at least 1, got {value!r}'
            )


def check_flags(owner: object, **options: bool) -> None:
    """Refuses options that are neither True nor False; any text, 'no' as well, would pass for True.

    Args:
        owner (object): Object that has the options; messages name its class.
        **options: Name and value.

    Raises:
        ValueError: Names the option.
    """
    for name, value in options.items():
        if isinstance(value, str) or value not in (True, False):  # 0, 1 and those of NumPy pass
            raise ValueError(f'{type(owner).__name__}: {name} must be True or False, got {value!r}')


def check_choice(owner: object, choices: Sequence[str], **options: str) -> None:
    """Refuses options that are none of two or more choices.

    Args:
        owner (object): Object that has the options; messages name its class.
        choices (Sequence[str]): What they may be.
        **options: Name and value.

    Raises:
        ValueError: Names the option and the choices.
    """
    *others, last = map(repr, choices)
    for name, value in options.items():
        if value not in choices:
            raise ValueError(
                f'{type(owner).__name__}: {name} must be {", ".join(others)} or {last}, '
                f'got {value!r}'
            )


def warn_without_effect(owner: object, remedy: str, **options: Any) -> None:
    """Warns of options that older configs set and that no longer do anything.

    Args:
        owner (object): Object that has the options; messages name its class.
        remedy (str): A sentence on what has taken their place.
        **options: Name and value; None for what the config doesn't set.
    """
    for name, value in options.items():
        if value is not None:
            warnings.warn(
                f'{type(owner).__name__}: {name}={value!r} has no effect and will be removed. '
                f'{remedy}',
                FutureWarning,  # that of deprecation is hidden from those who run a config
                stacklevel=3,
            )
