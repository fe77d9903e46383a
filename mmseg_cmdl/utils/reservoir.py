"""An even sample of each class's vectors over any number of batches."""

import torch
from torch import Tensor


class Reservoir:
    """A uniform random sample of the vectors of each class, of bounded size, in one pass.

    Each vector draws a number, and those with the largest numbers of their class are kept, so all
    vectors of a class have the same chance. The same seed gives the same sample.

    Args:
        num_classes (int): K, the number of classes.
        size (int): Vectors kept of each class.
        channels (int): C, the length of a vector.
        seed (int): Seed of the numbers.
        dtype (torch.dtype): Type of the vectors that are kept. Defaults to float32.

    Attributes:
        counts (Tensor): int64 [K], vectors that were seen of each class.
    """

    def __init__(
        self,
        num_classes: int,
        size: int,
        channels: int,
        seed: int,
        dtype: torch.dtype = torch.float32,
    ):
        self.size = size
        self.numbers = torch.full((num_classes, size), -1.0)  # -1 where nothing is kept yet
        self.vectors = torch.zeros(num_classes, size, channels, dtype=dtype)
        self.counts = torch.zeros(num_classes, dtype=torch.int64)
        self.generator = torch.Generator().manual_seed(seed)

    def add(self, vectors: Tensor, classes: Tensor) -> None:
        """Takes in [P, C] of the classes [P], all in 0..K-1; what isn't finite is left out."""
        finite = vectors.isfinite().all(dim=1)
        vectors, classes = vectors[finite].to(self.vectors.dtype), classes[finite]
        self.counts += torch.bincount(classes, minlength=len(self.counts))
        numbers = torch.rand(len(classes), generator=self.generator)
        stays = numbers > self.numbers.amin(dim=1)[classes]
        numbers, vectors, classes = numbers[stays], vectors[stays], classes[stays]
        for c in classes.unique().tolist():
            own = classes == c
            drawn = torch.cat([self.numbers[c], numbers[own]])
            kept = drawn.topk(self.size).indices
            self.numbers[c] = drawn[kept]
            self.vectors[c] = torch.cat([self.vectors[c], vectors[own]])[kept]

    def sample(self, c: int) -> Tensor:
        """The kept vectors [M, C] of class c."""
        return self.vectors[c][self.numbers[c] >= 0]
