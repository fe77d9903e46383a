"""What configs of parts may be, made one."""

from typing import List, Optional, Sequence, Union

from mmseg.registry import MODELS


def as_list(losses: Union[dict, Sequence[dict], None]) -> List[dict]:
    """Configs of losses, of which there may be one, several or None."""
    if losses is None:
        return []
    return [losses] if isinstance(losses, dict) else list(losses)


def registered_class(cfg: dict) -> Optional[type]:
    """The class (or function) that `cfg` would build; None if no such name is registered."""
    cls = cfg['type']
    return MODELS.get(cls) if isinstance(cls, str) else cls
