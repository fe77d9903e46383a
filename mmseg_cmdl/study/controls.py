"""Controls: a memory head's modules without its memory, since a gain may be that of more layers.

Registered for the jobs by `custom_imports`, as the recorder is.
"""

from typing import Any, Dict, Tuple

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from torch import Tensor, nn

from ..models.decode_heads.dataset_context_head import DatasetContextHead
from ..registry import MODELS


class NoMemory(nn.Module):
    """Stands where the base class asks for a bank."""

    def take_initial_(self) -> Dict[str, Tensor]:
        """Nothing to start from."""
        return {}

    def synchronize_(self) -> None:
        """Nothing to share."""


class _Control(DatasetContextHead):
    bank: Any  # NoMemory

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.bank = NoMemory()

    def memory_losses(self, pixels: Tensor, labels: Tensor) -> Dict[str, Tensor]:
        """None: there is no memory to train."""
        return {}

    def update_bank(self, *args: Any, **kwargs: Any) -> Dict[str, Tensor]:
        """Nothing moves."""
        return {}


@MODELS.register_module()
class PixelControlHead(_Control):
    """The relation attends to the pixels themselves in the place of what the memory gives.

    Args:
        **kwargs: Options of :class:`DatasetContextHead`.
    """

    def read_memory(self, weights: Tensor) -> Tensor:
        """What the relation doesn't look at."""
        return weights

    def relate(self, pixels: Tensor, memory: Tensor) -> Tensor:
        """R attends to itself."""
        return super().relate(pixels, pixels)


@MODELS.register_module()
class LearnedControlHead(_Control):
    """Class vectors learned by gradient in the place of the memory, read as a memory is.

    Args:
        vectors (tuple[int]): N and Z, vectors of each class and their channels.
        fuse (bool): Whether a 1x1 ConvModule follows, from N * Z to the head's channels, as in
            MDRLHead. Otherwise N is 1 and Z the head's channels.
        **kwargs: Options of :class:`DatasetContextHead`.
    """

    def __init__(self, *args: Any, vectors: Tuple[int, int], fuse: bool, **kwargs: Any):
        super().__init__(*args, **kwargs)
        count, width = vectors
        start = nn.init.trunc_normal_(torch.empty(self.num_classes, count, width), std=0.02)
        self.vectors = nn.Parameter(F.normalize(start, dim=-1))
        self.fuse_memory = None
        if fuse:
            self.fuse_memory = ConvModule(count * width, self.channels, 1, **self.conv_options)

    def read_memory(self, weights: Tensor) -> Tensor:
        """Class weights [B, K, h, w] times the vectors: [B, C, h, w]."""
        read = F.conv2d(weights, self.vectors.flatten(1).t()[:, :, None, None].to(weights))
        return read if self.fuse_memory is None else self.fuse_memory(read)
