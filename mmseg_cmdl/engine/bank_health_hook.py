"""Hook that logs how a memory bank fares in training and draws its distribution map."""

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
from ..utils import check_finite, unwrapped


@HOOKS.register_module()
class BankHealthHook(Hook):
    """Logs the health of the head's bank, and draws the distribution map of fixed images.

    ``custom_hooks = [dict(type='BankHealthHook')]``. Every `interval` iterations, and into whatever
    the config's visualizer writes to (files, TensorBoard, W&B), under names that hold no 'loss':

    - `bank_drift`: mean angle between each vector of the bank and itself at the last time, in
      degrees;
    - `bank_filled`: classes in memory;
    - and what else the bank tells (:meth:`MemoryBank.health`): a DistributionBank how evenly the
      distributions are used and how well they tell classes apart.

    Where the bank has several vectors a class, which of them each pixel belongs to is drawn at each
    validation for fixed images of the validation set, as `distribution_map_INDEX`.

    It changes nothing in training, draws no random numbers and costs one message between ranks an
    interval. Without a bank in the model it says so once and does nothing.

    Args:
        interval (int): Iterations between two times. Defaults to 50.
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
        self.draw = draw
        self.images = list(images)
        self._bank: Optional[MemoryBank] = None

    def before_train(self, runner: Runner) -> None:
        """Finds the bank, which begins to count."""
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
        """The bank counts no longer."""
        if self._bank is not None:
            self._bank.unwatch()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Optional[dict] = None
    ) -> None:
        """Logs, at the end of an interval."""
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
