"""Random numbers of an iteration that depend on the iteration, not on what was run before it."""

from typing import Any, Optional

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..registry import HOOKS
from ..utils import check_finite


@HOOKS.register_module()
class SeedPerIterationHook(Hook):
    """Seeds PyTorch's generators at the start of each training iteration, differently on each rank.

    mmengine's checkpoints don't hold the state of the random generators, so a resumed job draws
    other dropout masks than a job that was never stopped. With this hook both draw the same, and
    their results are equal bit for bit. The shipped configs have it among their `default_hooks`; in
    a config of your own add it to `custom_hooks`. It doesn't seed the augmentation of the data
    pipeline: on resuming, mmengine loads and drops the batches that were trained already. The
    maintained fork's mmengine skips them without loading; there this hook makes it load them.

    Args:
        seed (int, optional): Defaults to the seed of the runner.
    """

    # before every other hook, which may draw
    priority = 'VERY_HIGH'

    def __init__(self, seed: Optional[int] = None):
        check_finite(self, seed=seed)
        self.seed = seed

    def before_train(self, runner: Runner) -> None:
        """Make a resumed job load the batches that it skips, for their random numbers."""
        batches: Any = getattr(runner.train_loop, 'dataloader_iterator', None)
        if hasattr(batches, 'skip_iter'):

            def load_and_drop(number: int) -> None:
                for _ in range(number):
                    next(batches)

            batches.skip_iter = load_and_drop

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed from (seed, iteration, rank)."""
        seed = runner.seed if self.seed is None else self.seed
        # odd multipliers keep the three apart; 63 bits are what manual_seed takes
        mixed = (seed or 0) * 0x9E3779B97F4A7C15 + runner.iter * 0xBF58476D1CE4E5B9
        mixed += get_rank() * 0x94D049BB133111EB
        torch.manual_seed((mixed ^ (mixed >> 31)) % 2**63)
