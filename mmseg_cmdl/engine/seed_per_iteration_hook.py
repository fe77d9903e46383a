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
    """Seeds PyTorch's generators at the start of each training iteration, on each rank otherwise.

    mmengine's checkpoints don't hold the state of the generators, so a job with dropout that is
    resumed draws other masks than one that was never stopped. With this hook (the shipped configs
    have it among their `default_hooks`; `custom_hooks` of one's own config will do as well) both
    draw the same, and the resumed job is equal to the other bit for bit. Augmentation in the
    data pipeline is not touched: mmengine runs the pipeline past the batches that were trained.
    Where it would pass over them without that (the maintained fork's mmengine), this hook has it
    run the pipeline.

    Args:
        seed (int, optional): Defaults to the runner's.
    """

    # before every other hook, which may draw
    priority = 'VERY_HIGH'

    def __init__(self, seed: Optional[int] = None):
        check_finite(self, seed=seed)
        self.seed = seed

    def before_train(self, runner: Runner) -> None:
        """Let a resumed job draw what the pipeline drew for the batches that it skips."""
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
