"""A mean and a standard deviation per class, which make a class vector out of fixed noise.

Source: MCIBI++ (Jin et al., TPAMI 2022); the numbers are those of its released code, the paper's
text was not at hand.
"""

from typing import Optional

import torch
from torch import Tensor

from ...registry import MODELS
from ...utils import all_reduce_sum_, at_least_float32, check_counts, check_finite
from .class_sums import class_sums
from .feature_bank import FeatureUpdate
from .initial_memory import InitialMemory
from .memory_bank import MemoryBank


def class_noise(num_classes: int, channels: int) -> Tensor:
    """The noise rows [K, C] of the released code: row k is drawn in float32 with the seed k.

    The release draws them in each forward pass, from PyTorch's own generator, so they are the same
    in each; here they are drawn once, from a generator of their own.
    """
    generator = torch.Generator()
    rows = [
        torch.randn(channels, generator=generator.manual_seed(k), dtype=torch.float32)
        for k in range(num_classes)
    ]
    return torch.stack(rows)


def left_the_start(statistics: Tensor) -> Tensor:
    """Bool [K], the classes whose statistics [K, 2] aren't those that all start with."""
    return (statistics != statistics.new_tensor([0.0, 1.0])).any(dim=1)


@MODELS.register_module()
class GaussianBank(MemoryBank):
    """Memory of two numbers per class (MCIBI++).

    An update moves the mean and the deviation of each class that the batch has, over all ranks, to
    those of its mean vector: with v[k] the mean [C] of the pixels of class k, its statistics are
    mean and standard deviation (unbiased) *over the C channels* of v[k], and ``S[k] = (1 - m) S[k]
    + m (mean, deviation)``. There is no first value of its own: a class starts at (0, 1). The class
    vector is ``mean + deviation * noise[k]``.

    Args:
        num_classes (int): K, the number of classes.
        momentum (float): m, weight of what is new, in [0, 1]. Defaults to 0.1.
        channels (int, optional): C, length of a class vector; the head gives it. Without it the
            bank has no `noise` and :meth:`vectors` must be given some.
        init (str): 'standard' for (0, 1), or the path of a file that tools/init_memory.py has
            written with one centre a class: its statistics over the channels are taken.
            Defaults to 'standard'.

    Attributes:
        statistics (Tensor): Buffer [K, 2], mean and deviation.
        noise (Tensor): Buffer [K, C], see :func:`class_noise`; saved, so that a checkpoint means
            the same where another version of PyTorch draws other numbers.
        num_updates (Tensor): Buffer, int64 scalar.

    Raises:
        ValueError: An argument is out of its range.
    """

    memory_name = 'statistics'
    statistics: Tensor
    noise: Tensor
    memory_sizes = ('num_classes',)

    def __init__(
        self,
        num_classes: int,
        momentum: float = 0.1,
        channels: Optional[int] = None,
        init: str = 'standard',
    ):
        super().__init__(None if init == 'standard' else init)
        check_counts(self, num_classes=num_classes)
        check_finite(self, momentum=momentum)
        if not 0 <= momentum <= 1:
            raise ValueError(
                'GaussianBank: momentum is the weight of the new statistics and must be in [0, 1], '
                f'got {momentum}'
            )
        self.num_classes = num_classes
        self.momentum = momentum
        self.channels = channels
        self.register_buffer('statistics', torch.tensor([[0.0, 1.0]]).repeat(num_classes, 1))
        self.register_buffer('num_updates', torch.zeros((), dtype=torch.int64))
        if channels is not None:
            check_counts(self, channels=channels)
            if channels < 2:
                raise ValueError(
                    'GaussianBank: channels must be at least 2 for a standard deviation over them, '
                    f'got {channels}'
                )
            self.register_buffer('noise', class_noise(num_classes, channels))

    def vectors(self, noise: Tensor) -> Tensor:
        """Class vectors as the current iteration sees them.

        Args:
            noise (Tensor): [K, C].

        Returns:
            Tensor: [K, C], ``mean + deviation * noise``.
        """
        mean, deviation = self.read().unsqueeze(-1).unbind(dim=1)
        return mean + deviation * noise

    def class_vectors(self) -> Tensor:
        """[K, 1, C], with the bank's own noise."""
        return self.vectors(self.noise)[:, None]

    def filled_classes(self) -> Tensor:
        """Bool [K], the classes whose statistics aren't those that all start with."""
        return left_the_start(self.statistics)

    def _set_initial(self, memory: InitialMemory) -> None:
        # without `channels` noise of any length is given to `vectors`
        memory.check(self.num_classes, 1, self.channels or memory.centers.shape[-1])
        found = self._statistics_of(memory.centers[:, 0].to(self.statistics))
        filled = memory.filled.to(self.statistics.device)
        self.statistics.copy_(torch.where(filled, found, self.statistics))

    @staticmethod
    def _statistics_of(vectors: Tensor) -> Tensor:
        """Mean and unbiased deviation over the channels, [K, C] to [K, 2]."""
        return torch.stack([vectors.mean(dim=1), vectors.std(dim=1)], dim=1)

    def update_(
        self,
        features: Tensor,
        labels: Tensor,
        ignore_index: int = 255,
        align_corners: bool = False,
    ) -> Optional[FeatureUpdate]:
        """Moves the statistics towards those of this batch, in place, over all ranks.

        Args:
            features (Tensor): [P, C]; or [B, C, h, w], which are taken bilinearly resized to the
                label maps without ever forming them so large.
            labels (Tensor): [P]; or [B, H, W].
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
            statistics = at_least_float32(self.statistics)
            features = features.detach().to(statistics.dtype)
            sums = class_sums(
                features, labels, self.num_classes, ignore_index, align_corners=align_corners
            )
            all_reduce_sum_(sums.packed)
            counts = sums.plain[:, -1:]
            found = self._statistics_of(sums.plain[:, :-1] / counts.clamp(min=1e-6))
            moved = statistics.lerp(found, self.momentum)
            moves = (counts > 0) & moved.isfinite().all(dim=1, keepdim=True)
            self.statistics.copy_(torch.where(moves, moved, statistics))
            self.num_updates += 1
            return FeatureUpdate(sums.labelled, sums.left_out)
