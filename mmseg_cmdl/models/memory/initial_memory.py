"""Start values of a memory bank in a file: written by tools/init_memory.py, read by the banks."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Dict, List, Optional

import torch
from torch import Tensor

_FORMAT = 'mmseg_cmdl initial memory 1'


@dataclass
class InitialMemory:
    """N vectors for each class, from the pixels of a data set.

    Attributes:
        centers (Tensor): [K, N, C]; a row is 0 where there is none.
        filled (Tensor): Bool [K, N], which rows there are.
        counts (Tensor): int64 [K], pixels of each class that were looked at.
        classes (list[str]): Names of the K classes.
        embedding (dict[str, Tensor]): State of the head's layers that made the vectors from the
            backbone's features, under their names in the head.
        origin (dict): How the file came about: strategy, seed, config, checkpoint.
        path (str, optional): Where it was read.
    """

    centers: Tensor
    filled: Tensor
    counts: Tensor
    classes: List[str]
    embedding: Dict[str, Tensor] = field(default_factory=dict)
    origin: Dict = field(default_factory=dict)
    path: Optional[str] = None

    def save(self, path: str) -> None:
        """Write it, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {**asdict(self), 'format': _FORMAT}
        del content['path']
        unfinished = path.with_name(f'{path.name}.part')
        torch.save(content, unfinished)
        unfinished.replace(path)

    @classmethod
    def load(cls, path: str) -> 'InitialMemory':
        """Read it.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is something else.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(
                f'init: there is no file {path}; make it with tools/init_memory.py, or set '
                'init of the bank to its default'
            )
        try:
            content = torch.load(path, map_location='cpu', weights_only=True)
        except Exception as error:  # whatever unpickling comes to
            raise ValueError(
                f'init: {path} is no file of tools/init_memory.py ({type(error).__name__})'
            ) from error
        if not isinstance(content, dict) or content.pop('format', None) != _FORMAT:
            raise ValueError(f'init: {path} is no file of tools/init_memory.py')
        return cls(**content, path=str(path))

    def check(self, num_classes: int, num_distributions: int, channels: int) -> None:
        """Refuse a file of another shape than the bank's.

        Raises:
            ValueError: Names the file and both shapes.
        """
        expected = (num_classes, num_distributions, channels)
        if tuple(self.centers.shape) != expected:
            raise ValueError(
                f'init: {self.path} holds {"x".join(map(str, self.centers.shape))} (classes x '
                f'centres x channels), the bank {"x".join(map(str, expected))}; write it anew with '
                f'tools/init_memory.py, --centers {num_distributions} and the config of this model'
            )
