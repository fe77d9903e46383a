"""Start values of a memory bank in a file: written by tools/init_memory.py, read by the banks."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Dict, List, Optional

import torch
from torch import Tensor

from ...written_files import written_beside

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
        content = {**asdict(self), 'format': _FORMAT}
        del content['path']
        with written_beside(path) as file:
            torch.save(content, file)

    @classmethod
    def load(cls, path: str) -> 'InitialMemory':
        """Read it.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is something else, or what is in it can't be start values: of
                another type or shape, not finite, or with a bank in the place of layers.
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
        wrong = _what_is_wrong(content)
        if wrong:
            raise ValueError(
                f'init: {path} is refused: {wrong}; write it anew with tools/init_memory.py'
            )
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


def _what_is_wrong(content: dict) -> Optional[str]:
    """Why a file's content can't be start values; None if it can."""
    parts = {'centers', 'filled', 'counts', 'classes', 'embedding', 'origin'}
    if set(content) != parts:
        return f'it has the parts {sorted(map(str, content))}, not {sorted(parts)}'
    centers, filled, counts, classes, embedding = (
        content[key] for key in ('centers', 'filled', 'counts', 'classes', 'embedding')
    )
    if not torch.is_tensor(centers) or not centers.is_floating_point() or centers.ndim != 3:
        return 'centers is no tensor [classes, centres, channels] of floating point numbers'
    shape = centers.shape
    if not torch.is_tensor(filled) or filled.dtype != torch.bool or filled.shape != shape[:2]:
        return f'filled is no bool tensor {list(shape[:2])}'
    if not torch.is_tensor(counts) or counts.dtype != torch.int64 or counts.shape != shape[:1]:
        return f'counts is no int64 tensor {list(shape[:1])}'
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        return 'classes is no list of names'
    if len(classes) != shape[0]:
        return f'it has {len(classes)} names of classes for {shape[0]} classes'
    # the length too: of numbers whose squares overflow there is no direction
    bad = (~centers.float().norm(dim=-1).isfinite()).nonzero()
    if len(bad):
        k, n = bad[0].tolist()
        return f'{len(bad)} vectors are not finite, the first is {n} of class {classes[k]!r}'
    if not isinstance(embedding, dict):
        return 'embedding is no dict of layers'
    for key, value in embedding.items():
        if not isinstance(key, str) or not torch.is_tensor(value):
            return f'embedding holds {key!r}, a {type(value).__name__}'
        if 'bank' in key.split('.'):
            return f'embedding holds {key}, which belongs to a memory bank'
        if value.is_floating_point() and not value.isfinite().all():
            return f'{key} is not finite'
    return None
