"""The memory of an MDRLHead from a later iteration on: an arm of docs/studies/earth-mdrl.

    custom_imports = dict(imports=['late_start'])         with this folder in PYTHONPATH
    custom_hooks = [dict(type='LateStart', begin=250)]

Before that iteration the losses on the bank have weight 0, and its rows stay as they started.
"""

from mmengine.hooks import Hook
from mmseg.registry import HOOKS

from mmseg_cmdl.utils import unwrapped


@HOOKS.register_module()
class LateStart(Hook):
    """Losses of weight 0 and a bank that doesn't move before iteration `begin`."""

    def __init__(self, begin):
        self.begin = begin

    def before_train(self, runner):
        head = unwrapped(runner.model).decode_head
        self.settings = [(head.bank, 'momentum', head.bank.momentum, 1.0)]
        self.settings += [
            (loss, 'loss_weight', loss.loss_weight, 0.0) for loss in head.consistency.losses
        ]

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        late = runner.iter >= self.begin
        for owner, name, value, before in self.settings:
            setattr(owner, name, value if late else before)
