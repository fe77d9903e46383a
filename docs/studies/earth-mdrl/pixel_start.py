"""A bank that starts as centres of the pixels of each class: an arm of docs/studies/earth-mdrl.

    custom_imports = dict(imports=['pixel_start'])   with this folder and the checkout in PYTHONPATH
    custom_hooks = [dict(type='PixelStart')]

What tools/init_memory.py --strategy cluster makes, here of the weights that this training itself
starts from: a file would be of one seed's, and the backbone's are random.
"""

import copy

import torch
from mmengine.hooks import Hook
from mmseg.registry import HOOKS

from mmseg_cmdl.models.memory import InitialMemory
from mmseg_cmdl.utils import unwrapped
from tools.init_memory import build_loader, choose, collect, use_batch_statistics


@HOOKS.register_module()
class PixelStart(Hook):
    """Sets the bank before the first iteration, unless a training is resumed."""

    @torch.no_grad()
    def before_train(self, runner):
        if runner.iter:
            return
        model = unwrapped(runner.model)
        copied = copy.deepcopy(model).eval()  # running statistics of the model must not move
        use_batch_statistics(copied)
        bank = model.decode_head.bank
        reservoir, _, classes = collect(
            copied, build_loader(copy.deepcopy(runner.cfg), runner.seed), 1000, runner.seed, None
        )
        number = bank.class_vectors().shape[1]
        centers, filled = choose(reservoir, 'cluster', number, runner.seed)
        bank._set_initial(InitialMemory(centers, filled, reservoir.counts, classes))
