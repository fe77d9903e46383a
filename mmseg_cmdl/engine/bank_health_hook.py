"""Hook that logs how a memory bank fares in training and draws its distribution map."""

from typing import List, Optional, Sequence

import mmengine.dist as dist
import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmseg.registry import HOOKS
from torch import Tensor

from ..models.memory.memory_bank import MemoryBank
from ..utils import all_reduce_sum_


@HOOKS.register_module()
class BankHealthHook(Hook):
    """Logs the health of the head's bank, and draws the distribution map of fixed images.

    ``custom_hooks = [dict(type='BankHealthHook')]``. Every `interval` iterations, and into whatever
    the config's visualizer writes to (files, TensorBoard, W&B), under names that hold no 'loss':

    - `bank_drift`: mean angle between each vector of the bank and itself at the last time, in
      degrees;
    - `bank_filled`: classes that have had a pixel, since training was started or resumed for a
      DistributionBank, ever for a FeatureBank;
    - for a DistributionBank, from the labelled pixels of the interval and all ranks, each given to
      the nearest distribution of its class:
      `bank_entropy`, entropy of the distributions' shares by ln N, mean over classes (1: evenly
      used); `bank_used`, percentage of distributions of those classes that were given a pixel;
      `bank_accuracy`, percentage of pixels whose nearest distribution of all is of their own class;
      `bank_left_out`, pixels whose embedding wasn't finite.

    At each validation an MDRLHead's distribution map of fixed images of the validation set is drawn
    as `distribution_map_INDEX`.

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
        if interval < 1:
            raise ValueError(f'BankHealthHook: interval must be at least 1, got {interval}')
        self.interval = interval
        self.draw = draw
        self.images = list(images)
        self._head: Optional[torch.nn.Module] = None
        self._handles: List = []

    def before_train(self, runner) -> None:
        """Finds the bank and starts counting."""
        self._head = find_bank_head(runner.model)
        if self._head is None:
            runner.logger.warning(
                'BankHealthHook: the model has no decode head with a memory bank; '
                'there is nothing to log'
            )
            return
        bank = self._head.bank
        self._before = _vectors(bank).clone()
        self._seen = None
        if hasattr(bank, 'distributions'):
            shape = bank.distributions.shape[:2]
            # pixels of each distribution, and of all: right, left out
            self._counts = torch.zeros(
                shape.numel() + 2, device=bank.distributions.device, dtype=torch.float64
            )
            self._seen = torch.zeros(shape[0], dtype=torch.bool, device=self._counts.device)
            self._handles.append(self._head.consistency.register_forward_hook(self._count))

    def after_train(self, runner) -> None:
        """Takes the hook off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @torch.no_grad()
    def _count(self, module, inputs, output) -> None:
        """Forward hook of the consistency losses: which distribution each pixel is nearest to."""
        if not module.training:
            return
        num_classes, count = self._head.bank.distributions.shape[:2]
        labelled = output.classes < num_classes
        finite = output.own_scores.isfinite().all(dim=1)
        rows = output.classes * count + output.own_scores.argmax(dim=1)
        # one row more for what doesn't count: no boolean mask, so no wait for the device
        rows = torch.where(labelled & finite, rows, num_classes * count)
        new = self._counts.new_zeros(num_classes * count + 1)
        new.scatter_add_(0, rows, torch.ones_like(rows, dtype=new.dtype))
        right = (output.correct & labelled & finite).sum()
        left_out = (labelled & ~finite).sum()
        self._counts += torch.cat([new[:-1], torch.stack([right, left_out])])

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Logs, at the end of an interval."""
        if self._head is None or not self.every_n_train_iters(runner, self.interval):
            return
        for name, value in self.health().items():
            runner.message_hub.update_scalar(f'train/{name}', value)

    @torch.no_grad()
    def health(self) -> dict:
        """The scalars of the interval that ends now; the next one begins.

        Returns:
            dict[str, float]: See the class.
        """
        bank = self._head.bank
        vectors = _vectors(bank)
        chord = F.normalize(vectors, dim=-1) - F.normalize(self._before, dim=-1)
        # small angles, which the arc of the cosine can't tell from none
        angles = torch.rad2deg(2 * torch.asin(chord.norm(dim=-1).div(2).clamp(max=1)))
        # a vector that was just filled has nothing to have drifted from
        moved = self._before.norm(dim=-1) > 0
        drift = torch.where(moved, angles, 0).sum() / moved.sum().clamp(min=1)
        self._before = vectors.clone()
        if self._seen is None:
            return dict(bank_drift=float(drift), bank_filled=int(bank.filled.sum()))
        counts = all_reduce_sum_(self._counts.clone())
        self._counts.zero_()
        right, left_out = counts[-2:].tolist()
        counts = counts[:-2].view(bank.distributions.shape[:2])
        present = counts.sum(dim=1) > 0
        self._seen |= present
        out = dict(
            bank_drift=float(drift), bank_filled=int(self._seen.sum()), bank_left_out=left_out
        )
        if present.any():
            out.update(
                bank_entropy=float(_entropy(counts[present]).mean()),
                bank_used=float(100 * (counts[present] > 0).double().mean()),
                bank_accuracy=100 * right / float(counts.sum()),
            )
        return out

    def after_val_epoch(self, runner, metrics=None) -> None:
        """Draws the maps, on rank 0."""
        if not self.draw or not dist.is_main_process():
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        head = find_bank_head(model)
        if not hasattr(head, 'distribution_map'):
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
def draw_health(model, head, dataset, index: int):
    """Image, ground truth, class and distribution of each pixel as they are now, uint8 RGB."""
    from ..analysis.examined_model import ExaminedModel
    from ..visualization import MappedImage, draw_distribution_maps, figure_to_array

    training = model.training
    try:
        # restores the mode below: ExaminedModel evaluates
        examined = ExaminedModel(model, dataset, 'model')
        example = examined.example(index, 'embedding')
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
            [mapped], head.bank.num_distributions, examined.palette, examined.classes
        )
    )


def find_bank_head(model) -> Optional[torch.nn.Module]:
    """The last module that holds a memory bank under the name `bank`; None where there is none."""
    heads = [
        module
        for module in model.modules()
        if isinstance(getattr(module, 'bank', None), MemoryBank)
    ]
    return heads[-1] if heads else None


def _vectors(bank) -> Tensor:
    """The bank's vectors, the last dimension their channels."""
    return getattr(bank, bank.memory_name).detach()


def _entropy(counts: Tensor) -> Tensor:
    """Entropy of shares [K, N] in units of ln N; 1 for N = 1."""
    if counts.shape[1] == 1:
        return torch.ones_like(counts[:, 0])
    shares = counts / counts.sum(dim=1, keepdim=True)
    return -torch.xlogy(shares, shares).sum(dim=1) / torch.log(
        torch.tensor(float(counts.shape[1]), dtype=counts.dtype)
    )
