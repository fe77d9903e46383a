"""Hook that logs the state of a memory bank in training and draws its distribution map."""

from typing import Any, Dict, Iterable, List, Optional, Sequence

import mmengine.dist as dist
import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.datasets import BaseSegDataset
from mmseg.models.segmentors import BaseSegmentor

from ..models.decode_heads.memory_head import MemoryHead
from ..models.memory.memory_bank import MemoryBank
from ..registry import HOOKS
from ..utils import check_finite, check_flags, unwrapped


@HOOKS.register_module()
class BankHealthHook(Hook):
    """Logs the state of the head's bank, and draws the distribution map of fixed images.

    Set ``custom_hooks = [dict(type='BankHealthHook')]``. Every `interval` iterations these scalars
    go into the log and to the backends of the config's visualizer (files, TensorBoard, W&B):

    - `bank_drift`: mean angle in degrees between each vector of the bank now and one interval ago;
    - `bank_filled`: number of classes in memory;
    - what else the bank reports (:meth:`MemoryBank.health`): a DistributionBank how evenly its
      distributions are used and how well they separate the classes.

    Where the bank has several vectors per class, each validation also draws, for fixed images of
    the validation set, which of them each pixel belongs to, as `distribution_map_INDEX`.

    The hook doesn't change the training, draws no random numbers and costs one message between
    ranks per interval. For a model without a bank it logs one warning and does nothing.

    Args:
        interval (int): Iterations between two log entries. Defaults to 50.
        draw (bool): Whether to draw. Defaults to True.
        images (Sequence[int]): Images of the validation set to draw. Defaults to (0, ).
    """

    # before LoggerHook takes what is to be logged
    priority = 'NORMAL'

    def __init__(self, interval: int = 50, draw: bool = True, images: Sequence[int] = (0,)):
        check_finite(self, interval=interval)
        if interval < 1:
            raise ValueError(f'BankHealthHook: interval must be at least 1, got {interval}')
        self.interval = interval
        check_flags(self, draw=draw)
        self.draw = draw
        self.images = list(images)
        self._bank: Optional[MemoryBank] = None

    def before_train(self, runner: Runner) -> None:
        """Finds the bank and starts its counters."""
        head = find_bank_head(runner.model)
        if head is None:
            runner.logger.warning(
                'BankHealthHook: the model has no decode head with a memory bank; '
                'there is nothing to log'
            )
            return
        self._bank = head.bank
        self._bank.watch()

    def after_train(self, runner: Runner) -> None:
        """Stops the counters of the bank."""
        if self._bank is not None:
            self._bank.unwatch()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Optional[dict] = None
    ) -> None:
        """Logs the scalars at the end of an interval."""
        if self._bank is None or not self.every_n_train_iters(runner, self.interval):
            return
        for name, value in self._bank.health().items():
            runner.message_hub.update_scalar(f'train/{name}', value)

    def after_val_epoch(self, runner: Runner, metrics: Optional[Dict[str, float]] = None) -> None:
        """Draws the maps, on rank 0."""
        if not self.draw or not dist.is_main_process():
            return
        model = unwrapped(runner.model)
        head = find_bank_head(model)
        if head is None or head.bank.class_vectors().shape[1] == 1:
            return
        dataset = runner.val_dataloader.dataset
        for index in self.images:
            if not 0 <= index < len(dataset):
                raise ValueError(
                    f'BankHealthHook: there is no image {index} in the validation set, '
                    f'which has {len(dataset)}'
                )
            picture = draw_health(model, head, dataset, index)
            runner.visualizer.add_image(f'distribution_map_{index}', picture, step=runner.iter)


@torch.no_grad()
def draw_health(
    model: BaseSegmentor, head: MemoryHead, dataset: BaseSegDataset, index: int
) -> np.ndarray:
    """Image, ground truth, class and distribution of each pixel as they are now, uint8 RGB."""
    from ..analysis.examined_model import ExaminedModel
    from ..visualization import MappedImage, draw_distribution_maps, figure_to_array

    training = model.training
    try:
        # restores the mode below: ExaminedModel evaluates
        examined = ExaminedModel(model, dataset, 'model')
        example = examined.example(index, 'embedding')
        assert example.labels is not None  # features were asked for
        h, w = example.labels.shape  # without padding
        classes, distributions = (
            found[0, :h, :w].cpu().numpy()
            for found in head.distribution_map(examined.feature_maps(index))
        )
    finally:
        model.train(training)
    mapped = MappedImage(f'image {index}', example.image, example.truth, classes, distributions)
    return figure_to_array(
        draw_distribution_maps(
            [mapped], head.bank.class_vectors().shape[1], examined.palette, examined.classes
        )
    )


def find_bank_head(model: Any) -> Optional[MemoryHead]:
    """The module that holds a memory bank under the name `bank`; None where there is none.

    Of several the last one of the `decode_head`, which is nearest to what predicts, then of others.
    """

    def holders(modules: Iterable[Any]) -> List[Any]:
        return [m for m in modules if isinstance(getattr(m, 'bank', None), MemoryBank)]

    model = unwrapped(model)
    predicting = getattr(model, 'decode_head', None)
    found = holders(predicting.modules()) if predicting is not None else []
    found = found or holders(model.modules())
    return found[-1] if found else None
