"""N unit vectors per class, moved towards the pixels that balanced assignment gives them.

Source: MDRL, sections 3.2 and 3.3, eq. 6 to 9.
"""

from typing import Dict, NamedTuple, Optional

import mmengine.dist as dist
import torch
import torch.nn.functional as F
from torch import Tensor

from ...registry import MODELS
from ...utils import (
    all_reduce_sum_,
    all_reduce_together,
    check_choice,
    check_counts,
    check_finite,
    class_rows,
    entropy_of_counts,
    of_own_class,
    row_sums,
)
from .initial_memory import InitialMemory
from .memory_bank import MemoryBank
from .seeded_noise import gumbel_noise
from .sinkhorn import balance, sinkhorn


class BankUpdate(NamedTuple):
    """What an update counted, over all ranks. Scalars without gradient."""

    labelled: Tensor  # pixels with a class
    correct: Tensor  # of these, pixels whose nearest distribution is of their own class
    left_out: Tensor  # of these, pixels whose embedding isn't finite; they never reach the bank


def _pixels_of_lower_ranks(classes: Tensor) -> Tensor:
    """Where this rank's pixels begin among those of all ranks, whose batches may differ in size."""
    counts = classes.new_zeros(dist.get_world_size())
    counts[dist.get_rank()] = len(classes)
    return all_reduce_sum_(counts)[: dist.get_rank()].sum()


@MODELS.register_module()
class DistributionBank(MemoryBank):
    """Memory of N distributions per class, clustered by Sinkhorn (MDRL, eq. 6 to 8).

    An update assigns the pixels of each class, over the batches of all ranks, to the N
    distributions of that class in equal shares, and moves each distribution towards the direction
    of the pixels it was given: ``d = normalize(momentum * d + (1 - momentum) * b)`` with ``b`` the
    l2-normalised sum of their embeddings. Distributions that are given no pixel stay as they are.

    Args:
        num_classes (int): K, the number of classes.
        num_distributions (int): N, the number of distributions of each class.
        channels (int): Z, length of an embedding.
        momentum (float): Weight of the old vector (mu in MDRL eq. 8), in [0, 1]. Defaults to 0.999.
        epsilon (float): Smoothness of the assignment. Defaults to 0.05.
        iterations (int): Sinkhorn iterations. Defaults to 3.
        assignment (str): 'argmax' (paper) takes the largest entry of the balanced assignment;
            'gumbel' (released code) draws with Gumbel noise added to it.
        update_pixels (str): 'correct' (released code, after ProtoSeg) moves the bank only by pixels
            whose nearest distribution of all classes is of their own class; 'all' by every
            labelled pixel (paper). All labelled pixels take part in the assignment either way.
        seed (int): Seed of the 'gumbel' draws. Defaults to 0.
        init (str): 'random', or the path of a file that tools/init_memory.py has written with
            N centres a class, read when the head's weights are initialised. Rows that the file
            doesn't have start at random. Defaults to 'random'.

    Attributes:
        distributions (Tensor): Buffer [K, N, Z] of unit rows; at the start truncated normal with
            std 0.02, l2-normalised.
        num_updates (Tensor): Buffer, int64 scalar.

    Raises:
        ValueError: An argument is out of its range.
    """

    memory_name = 'distributions'
    distributions: Tensor

    def __init__(
        self,
        num_classes: int,
        num_distributions: int,
        channels: int,
        momentum: float = 0.999,
        epsilon: float = 0.05,
        iterations: int = 3,
        assignment: str = 'argmax',
        update_pixels: str = 'correct',
        seed: int = 0,
        init: str = 'random',
    ):
        super().__init__(None if init == 'random' else init)
        check_counts(
            self,
            num_classes=num_classes,
            num_distributions=num_distributions,
            channels=channels,
            iterations=iterations,
        )
        check_finite(self, momentum=momentum, epsilon=epsilon, seed=seed)
        if not 0 <= momentum <= 1:
            raise ValueError(
                'DistributionBank: momentum is the weight of the old vector and must '
                f'be in [0, 1], got {momentum}'
            )
        if epsilon <= 0:
            raise ValueError(f'DistributionBank: epsilon must be positive, got {epsilon}')
        check_choice(self, ('argmax', 'gumbel'), assignment=assignment)
        check_choice(self, ('correct', 'all'), update_pixels=update_pixels)
        self.num_classes = num_classes
        self.num_distributions = num_distributions
        self.channels = channels
        self.momentum = momentum
        self.epsilon = epsilon
        self.iterations = iterations
        self.assignment = assignment
        self.update_pixels = update_pixels
        self.seed = seed

        start = torch.nn.init.trunc_normal_(
            torch.empty(num_classes, num_distributions, channels), std=0.02
        )
        self.register_buffer('distributions', F.normalize(start, dim=-1))
        self.register_buffer('num_updates', torch.zeros((), dtype=torch.int64))

    def _set_initial(self, memory: InitialMemory) -> None:
        memory.check(self.num_classes, self.num_distributions, self.channels)
        rows = F.normalize(memory.centers.to(self.distributions), dim=-1)
        taken = memory.filled.to(rows.device)[..., None] & (rows.norm(dim=-1, keepdim=True) > 0)
        self.distributions.copy_(torch.where(taken, rows, self.distributions))

    def update_(
        self,
        embeddings: Tensor,
        labels: Tensor,
        correct: Optional[Tensor] = None,
        ignore_index: int = 255,
        similarity: Optional[Tensor] = None,
        assigned: Optional[Tensor] = None,
    ) -> Optional[BankUpdate]:
        """Moves the bank towards this batch (MDRL eq. 6 to 8), in place, over all ranks.

        Args:
            embeddings (Tensor): [P, Z].
            labels (Tensor): [P].
            correct (Tensor, optional): Bool [P], whether the pixel's nearest distribution is of its
                own class. Found here if not given.
            ignore_index (int): Label of pixels without a class. So is any label outside 0..K-1.
            similarity (Tensor, optional): [P, K, N], what :meth:`similarity` gives, where it is at
                hand already, as it is after the losses.
            assigned (Tensor, optional): int64 [P], what :meth:`assign` gives, where it is at hand
                already; 'gumbel' draws anew.

        Returns:
            BankUpdate | None: Counts; None while autograd recomputes a checkpointed forward pass.

        Raises:
            ValueError: Something is of another shape.
        """
        others = dict(correct=correct, similarity=similarity, assigned=assigned)
        self._check_pixels(embeddings, labels, self.channels, maps=False, **others)
        if not self.begin_update():
            return None
        with torch.no_grad(), torch.autocast(embeddings.device.type, enabled=False):
            precise = torch.promote_types(self.distributions.dtype, torch.float32)
            embeddings = embeddings.detach().to(precise)
            if similarity is None:
                similarity = self.similarity(embeddings)
            classes = class_rows(labels, self.num_classes, ignore_index)
            own_scores = of_own_class(similarity.detach(), classes)
            labelled = classes < self.num_classes
            if correct is None:
                correct = own_scores.amax(dim=1) >= similarity.amax(dim=(1, 2))
            # A non-finite embedding has non-finite products with the dense unit rows of the bank,
            # and x - x is 0 for finite x only.
            total = own_scores.sum(dim=1)
            left_out = labelled & (total - total != 0)
            correct = correct & labelled
            classes = classes.masked_fill(left_out, self.num_classes)
            if self._watched is not None:
                self._count(classes, own_scores, correct, left_out)

            if assigned is None or self.assignment == 'gumbel':
                assigned = self._assign(own_scores, classes, self.assignment == 'gumbel')
            rows = assigned.add(classes, alpha=self.num_distributions)
            moving = correct if self.update_pixels == 'correct' else labelled
            num_rows = self.num_classes * self.num_distributions
            rows.masked_fill_(left_out | ~moving, num_rows)
            sums, counts = row_sums(embeddings, rows, num_rows)
            totals = torch.stack([x.count_nonzero() for x in (labelled, correct, left_out)])
            sums, counts, totals = all_reduce_together(sums, counts, totals.to(sums))
            self._move_(sums, counts)
            self.num_updates += 1
            return BankUpdate(*totals)

    def assign(self, similarity: Tensor, classes: Tensor) -> Tensor:
        """Distribution of its class that balanced assignment gives each pixel (MDRL eq. 6 and 7).

        The largest entry, whatever `assignment` is: ProtoSeg's losses take it for their target even
        where the update draws.

        Args:
            similarity (Tensor): [P, K, N].
            classes (Tensor): int64 [P] in 0..K, K for pixels without a class.

        Returns:
            Tensor: int64 [P] in 0..N-1; what pixels without a class have means nothing.
        """
        with torch.no_grad(), torch.autocast(similarity.device.type, enabled=False):
            return self._assign(of_own_class(similarity, classes), classes, draw=False)

    def _assign(self, own_scores: Tensor, classes: Tensor, draw: bool) -> Tensor:
        """Distribution [P] of its class that each pixel is given to, or that is drawn for it."""
        options = self.num_classes, self.epsilon, self.iterations
        if not draw:
            # a pixel's own factor doesn't change which entry is the largest
            return balance(own_scores, classes, *options).argmax(dim=0)
        positions = torch.arange(len(classes), device=classes.device)
        positions += _pixels_of_lower_ranks(classes)
        noise = gumbel_noise(positions, self.num_distributions, self.seed, self.num_updates)
        return (sinkhorn(own_scores, classes, *options) + noise).argmax(dim=1)

    def _move_(self, sums: Tensor, counts: Tensor) -> None:
        """MDRL eq. 8 from summed embeddings [K * N, Z] and counts [K * N]."""
        rows = self.distributions.view_as(sums)
        moved = F.normalize(sums, dim=1).lerp(rows.to(sums.dtype), self.momentum)
        length = moved.norm(dim=1, keepdim=True)
        # embeddings that cancel have no direction; with momentum 0 they leave nothing of the row
        moves = (counts[:, None] > 0) & (length > 1e-6)
        rows.copy_(torch.where(moves, moved / length, rows))

    def watch(self) -> None:
        """See the base class."""
        super().watch()
        shape = self.distributions.shape[:2]
        # pixels of each distribution, and of all: right, left out
        self._counts = torch.zeros(
            shape.numel() + 2, dtype=torch.float64, device=self.distributions.device
        )
        self._seen = torch.zeros(shape[0], dtype=torch.bool, device=self.distributions.device)

    def _count(
        self, classes: Tensor, own_scores: Tensor, correct: Tensor, left_out: Tensor
    ) -> None:
        """For :meth:`health`: which distribution of its class each pixel is nearest to."""
        num_rows = self.num_classes * self.num_distributions
        counted = classes < self.num_classes
        rows = classes * self.num_distributions + own_scores.argmax(dim=1)
        # one row more for what doesn't count: no boolean mask, so no wait for the device
        rows = torch.where(counted, rows, num_rows)
        counts = self._counts.new_zeros(num_rows + 1)
        counts.scatter_add_(0, rows, torch.ones_like(rows, dtype=counts.dtype))
        right = (correct & counted).sum()
        self._counts += torch.cat([counts[:-1], torch.stack([right, left_out.sum()])])

    @torch.no_grad()
    def health(self) -> Dict[str, float]:
        """See the base class; from the labelled pixels of the interval and of all ranks.

        Returns:
            dict[str, float]: `bank_drift`; `bank_filled`, classes that have had a pixel since
            :meth:`watch`; `bank_left_out`, pixels whose embedding wasn't finite. Where there were
            pixels, each given to the nearest distribution of its class: `bank_entropy`, entropy of
            the distributions' shares by ln N, mean over classes (1: evenly used); `bank_used`,
            percentage of distributions of these classes that were given a pixel; `bank_accuracy`,
            percentage of pixels whose nearest distribution of all is of their own class.
        """
        health = super().health()
        counts = all_reduce_sum_(self._counts.clone())
        self._counts.zero_()
        right, left_out = counts[-2:].tolist()
        counts = counts[:-2].view(self.distributions.shape[:2])
        present = counts.sum(dim=1) > 0
        self._seen |= present
        health.update(bank_filled=int(self._seen.sum()), bank_left_out=left_out)
        if present.any():
            health.update(
                bank_entropy=float(entropy_of_counts(counts[present]).mean()),
                bank_used=float(100 * (counts[present] > 0).double().mean()),
                bank_accuracy=100 * right / float(counts.sum()),
            )
        return health
