"""One vector per class, a running mean of its pixels over the whole dataset.

Source: MCIBI, section 3.2, eq. 6 to 10.
"""

from typing import NamedTuple, Optional, Union

import torch
from torch import Tensor

from ...registry import MODELS
from ...utils import all_reduce_sum_, at_least_float32, check_choice, check_counts
from .class_sums import ClassSums, class_sums
from .initial_memory import InitialMemory
from .memory_bank import MemoryBank


class FeatureUpdate(NamedTuple):
    """What an update counted, over all ranks. Scalars without gradient."""

    labelled: Tensor  # pixels with a class
    left_out: Tensor  # of these, pixels whose feature isn't finite; they never reach the bank


@MODELS.register_module()
class FeatureBank(MemoryBank):
    """Memory of one feature per class (MCIBI).

    An update moves the vector of each class that the batch has, over all ranks, towards its
    pixels: ``M[k] = (1 - m) M[k] + m R'[k]`` (MCIBI eq. 6). ``R'[k]`` is the mean of the pixels of
    the class, with the weights ``1 - cos(pixel, M[k])`` (MCIBI eq. 9 and 10) or equal ones. The
    first time a class is seen, its vector becomes the plain mean, whatever strategy and momentum
    are.

    Where all pixels of a class are parallel to its vector MCIBI eq. 10 divides 0 by 0; then, up to
    rounding, the plain mean is taken. The cosine with a vector of length 0 counts as 0.

    Args:
        num_classes (int): K, the number of classes.
        channels (int): C, the length of a vector.
        strategy (str): 'cosine' (MCIBI eq. 10) or 'mean'. Defaults to 'cosine'.
        init (str): 'first_seen', or the path of a file that tools/init_memory.py has written, read
            when the head's weights are initialised. Classes that the file doesn't have begin when
            first seen. Defaults to 'first_seen'.

    Attributes:
        features (Tensor): Buffer [K, C]; a row is 0 until `filled`.
        filled (Tensor): Buffer, bool [K], whether the class has a vector.
        num_updates (Tensor): Buffer, int64 scalar.

    Raises:
        ValueError: An argument is out of its range.
    """

    memory_name = 'features'
    features: Tensor
    filled: Tensor
    memory_sizes = ('num_classes', 'channels')

    def __init__(
        self, num_classes: int, channels: int, strategy: str = 'cosine', init: str = 'first_seen'
    ):
        super().__init__(None if init == 'first_seen' else init)
        check_counts(self, num_classes=num_classes, channels=channels)
        check_choice(self, ('cosine', 'mean'), strategy=strategy)
        self.num_classes = num_classes
        self.channels = channels
        self.strategy = strategy
        self.register_buffer('features', torch.zeros(num_classes, channels))
        self.register_buffer('filled', torch.zeros(num_classes, dtype=torch.bool))
        self.register_buffer('num_updates', torch.zeros((), dtype=torch.int64))

    def _set_initial(self, memory: InitialMemory) -> None:
        memory.check(self.num_classes, 1, self.channels)
        self.features.copy_(memory.centers[:, 0])
        self.filled.copy_(memory.filled[:, 0])

    def filled_classes(self) -> Tensor:
        """Bool [K], the classes that have been seen."""
        return self.filled

    def update_(
        self,
        features: Tensor,
        labels: Tensor,
        momentum: Union[float, Tensor],
        ignore_index: int = 255,
        align_corners: bool = False,
    ) -> Optional[FeatureUpdate]:
        """Moves the bank towards this batch (MCIBI eq. 6 and 8 to 10), in place, over all ranks.

        Args:
            features (Tensor): [P, C]; or [B, C, h, w], which are taken bilinearly resized to the
                label maps, as in MCIBI eq. 8, without ever forming them so large.
            labels (Tensor): [P]; or [B, H, W].
            momentum (float | Tensor): m in MCIBI eq. 6, the weight of the new value, in [0, 1].
            ignore_index (int): Label of pixels without a class. So is any label outside 0..K-1.
            align_corners (bool): Whether the resizing aligns corners. Defaults to False.

        Returns:
            FeatureUpdate | None: Counts; None while autograd recomputes a checkpointed forward
            pass.

        Raises:
            ValueError: Something is of another shape.
        """
        self._check_pixels(features, labels, self.channels, maps=True)
        if not self.begin_update():
            return None
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            memory = at_least_float32(self.features)
            features = features.detach().to(memory.dtype)
            near = memory if self.strategy == 'cosine' else None
            sums = class_sums(features, labels, self.num_classes, ignore_index, near, align_corners)
            all_reduce_sum_(sums.packed)
            self._move_(memory, sums, momentum)
            self.num_updates += 1
            return FeatureUpdate(sums.labelled, sums.left_out)

    def _move_(self, memory: Tensor, sums: ClassSums, momentum: Union[float, Tensor]) -> None:
        """MCIBI eq. 6 from the sums of all ranks."""
        counts = sums.plain[:, -1:]
        mean = sums.plain[:, :-1] / counts.clamp(min=1e-6)
        target = mean
        if sums.weighted is not None:  # strategy 'cosine'
            weights = sums.weighted[:, -1:]
            # below this the weights are the rounding of cosines of 1
            rounding = 100 * torch.finfo(memory.dtype).eps
            told_apart = weights > rounding * counts
            weighted = sums.weighted[:, :-1] / torch.where(told_apart, weights, 1)
            target = torch.where(told_apart, weighted, mean)
        moved = torch.where(self.filled[:, None], memory.lerp(target, momentum), mean)
        moves = (counts > 0) & moved.isfinite().all(dim=1, keepdim=True)
        self.features.copy_(torch.where(moves, moved, memory))
        self.filled |= moves.squeeze(1)
