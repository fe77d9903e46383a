"""Hook that warns of classes without pixels, and checks data that haven't been checked yet."""

from typing import Any, Iterator, Optional

import mmengine.dist as dist
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..data_guard import (
    check_dataset,
    class_heads,
    never_seen,
    num_labels,
    sample_check,
    segmentor,
)
from ..errors import InputError
from ..registry import HOOKS
from ..sample_guard import SampleCheck
from ..utils import check_finite


@HOOKS.register_module()
class DataGuardHook(Hook):
    """Checks the data of a training.

    - One warning in the log names the classes that had no labelled pixel in the first iterations on
      any rank, and the most common causes.
    - A job can't be resumed from the checkpoint of a model with other sizes, such as another number
      of classes.
    - After a call of :func:`mmseg_cmdl.data_guard.guard_data`, as in tools/train.py, each sample is
      checked in its worker. Without that call this hook checks the datasets before the first step,
      and the labels of each batch before the batch goes to the device.

    The shipped configs have it among their `default_hooks`. It draws no random number, and sends
    one message between ranks per job.

    Args:
        iterations (int): Number of iterations, from the start of a job, resumed or not, in which
            classes are counted. Defaults to 200.

    Raises:
        ValueError: `iterations` is below 1.
    """

    # before hooks that move a batch
    priority = 'VERY_HIGH'

    def __init__(self, iterations: int = 200):
        check_finite(self, iterations=iterations)
        if iterations < 1:
            raise ValueError(f'DataGuardHook: iterations must be at least 1, got {iterations}')
        self.iterations = iterations

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Refuses to resume another model, which would fail only at the optimizer's first step.

        Raises:
            InputError: Names what differs.
        """
        if not getattr(runner, '_resume', False):
            return
        found = _difference(runner, checkpoint)
        if found:
            raise InputError(
                f'the checkpoint to resume from {found}: a resumed job goes on with the same model '
                'and classes. To start from its weights, set load_from in the config, and leave '
                'out --resume'
            )

    def before_train(self, runner: Runner) -> None:
        """Checks what guard_data hasn't checked, and starts counting.

        Raises:
            DataError: See :func:`mmseg_cmdl.data_guard.guard_data`.
        """
        self._check = None
        if not isinstance(getattr(runner.train_dataloader, 'collate_fn', None), SampleCheck):
            check_dataset(runner, runner.train_dataloader.dataset, 'train')
            if runner.val_loop is not None:
                check_dataset(runner, runner.val_dataloader.dataset, 'val')
            self._check = sample_check(runner.model)
        heads = class_heads(segmentor(runner.model))
        num_classes = num_labels(heads[0][1]) if heads else 0
        self._pixels = torch.zeros(num_classes, dtype=torch.int64)
        self._iterations = self._images = 0
        self._done = not heads

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Counts the pixels of each class.

        Raises:
            DataError: A label is not the number of a class.
        """
        if self._check is not None:
            for sample in _samples(data_batch):
                self._check.look(None, sample)
        if self._done:
            return
        for sample in _samples(data_batch):
            labels = sample.gt_sem_seg.data
            if not labels.is_cpu:  # counting would wait for the device
                self._done = True
                return
            known = labels[(labels >= 0) & (labels < len(self._pixels))]
            self._pixels += torch.bincount(known, minlength=len(self._pixels))
            self._images += 1
        self._iterations += 1

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Optional[dict] = None
    ) -> None:
        """Logs the warning after the last of these iterations."""
        if not self._done and self._iterations == self.iterations:
            self._report(runner)

    def after_train(self, runner: Runner) -> None:
        """Logs the warning where the training was shorter."""
        if not self._done and self._iterations:
            self._report(runner)

    def _report(self, runner: Runner) -> None:
        self._done = True
        counts = torch.cat([self._pixels, torch.tensor([self._images])])
        dist.all_reduce(counts)
        pixels, images = counts[:-1], int(counts[-1])
        absent = (pixels == 0).nonzero()[:, 0].tolist()
        if not absent:
            return
        meta = getattr(runner.train_dataloader.dataset, 'metainfo', {})
        runner.logger.warning(never_seen(absent, meta, f'{images} images ({self._iterations} '
                                         'iterations)'))  # fmt: skip


def _difference(runner: Runner, checkpoint: dict) -> str:
    """What tells the model of a checkpoint from that of a runner; '' where nothing does."""
    model = segmentor(runner.model)
    own, saved = model.state_dict(), checkpoint.get('state_dict', {})
    for key, value in saved.items():
        if key in own and getattr(value, 'shape', None) != own[key].shape:
            return f'has {key} as {_size(value)}, the model as {_size(own[key])}'
    # mmengine loads what there is, and the optimizer counts parameters and names none
    counted = _parameters(checkpoint.get('optimizer'))
    # strategies of FlexibleRunner have forms of their own for what is sharded
    if not counted or not isinstance(runner, Runner):
        return ''
    if counted == _parameters(runner.optim_wrapper.state_dict()):
        return ''
    for key, _ in model.named_parameters():
        if key not in saved:
            return f'has no {key}'
    for key in saved:
        if key not in own:
            return f'has {key}, the model has not'
    return 'has other parameters'


def _parameters(optimizer: Optional[dict]) -> int:
    """How many parameters the state of an optimizer is of; 0 where there is none."""
    return sum(len(group['params']) for group in (optimizer or {}).get('param_groups', []))


def _size(value: Any) -> str:
    return 'x'.join(map(str, getattr(value, 'shape', ()))) or 'one number'


def _samples(batch: Any) -> Iterator:
    """SegDataSamples of a batch that have labels."""
    for sample in (batch or {}).get('data_samples') or []:
        if 'gt_sem_seg' in sample:
            yield sample
