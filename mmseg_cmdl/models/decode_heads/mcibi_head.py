"""MCIBIHead: one running feature per class, mixed into every pixel (MCIBI)."""

from contextlib import contextmanager
from typing import Dict, List, Union

import torch
from mmengine.logging import MessageHub
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...registry import MODELS
from ...utils import as_list, check_finite, labels_at_feature_size
from ..memory import FeatureBank
from .dataset_context_head import DatasetContextHead


class AnnealedMomentum:
    """Momentum of the memory (MCIBI, eq. 7): the weight of what is new.

    ``m_t = (1 - t / T)^power (m_0 - m_0 / 100) + m_0 / 100``, with the iteration t and the number
    of iterations T of the runner that trains; m_0 where none does. A function of t alone, so
    resuming needs no state.

    Args:
        start (float): m_0.
        power (float): 0 keeps the momentum at m_0.
    """

    def __init__(self, start: float, power: float):
        if not 0 <= start <= 1:
            raise ValueError(
                'MCIBIHead: memory_momentum is the weight of the new features and must be in '
                f'[0, 1], got {start}'
            )
        if power < 0:
            raise ValueError(f'MCIBIHead: momentum_power must be at least 0, got {power}')
        self.start = start
        self.power = power

    def at(self, iteration: int, num_iterations: int) -> float:
        """m_t."""
        left = max(0.0, 1 - iteration / num_iterations)
        return left**self.power * (self.start - self.start / 100) + self.start / 100

    def now(self) -> float:
        """m_t at the runner's iteration, or m_0."""
        hub = MessageHub.get_current_instance()
        num_iterations = hub.get_info('max_iters')
        # a runner that is done leaves its iteration behind, but not its stage
        if hub.get_info('loop_stage') is None or not num_iterations:
            return self.start
        return self.at(hub.get_info('iter'), num_iterations)


@contextmanager
def _running_statistics(module: nn.Module):
    """Norms inside use their running statistics, and leave them."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm in norms:
            norm.training = True


@MODELS.register_module()
class MCIBIHead(DatasetContextHead):
    """Mining contextual information beyond image (MCIBI).

    Args:
        bank (dict): Config of a :class:`FeatureBank`; `num_classes`, `channels` and `type` are
            filled in.
        loss_memory (dict | list[dict], optional): Losses of the classifier on the memory itself,
            over the classes in memory (L_M, MCIBI eq. 17); None for none. Defaults to cross entropy
            with weight 1.
        memory_loss_start (int): Number of training iterations before `loss_memory` begins.
            Defaults to 0.
        memory_momentum (float): m_0, weight of the new features in the memory. Defaults to 0.9.
        momentum_power (float): p in MCIBI eq. 7; 0 keeps the momentum constant. Defaults to 0.9.
        update_size (str): 'label' updates the memory from the features at the size of the labels
            (MCIBI eq. 8); 'feature' from the labels at the size of the features. Defaults to
            'label'.
        **kwargs: Options of :class:`DatasetContextHead`: `context`, `fusion`, `hard_aggregate`, ...

    The classifier sees the memory with the running statistics of its batch norm. As a batch of
    their own, the K vectors (with zeros for classes not seen yet) would be normalised by
    statistics that no pixel is classified with, and would leave them in the running ones.

    :meth:`loss` also logs `acc_memory`, the percentage of the classes in memory whose vector is
    classified right, `stat_filled_classes`, how many there are, `stat_memory_momentum`, and
    `stat_left_out_pixels`, the number of labelled pixels of all ranks whose features aren't finite
    and were kept from the memory.
    """

    def __init__(
        self,
        *args,
        bank: dict = dict(type='FeatureBank'),
        loss_memory: Union[dict, List[dict], None] = dict(
            type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0
        ),
        memory_loss_start: int = 0,
        memory_momentum: float = 0.9,
        momentum_power: float = 0.9,
        update_size: str = 'label',
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        check_finite(
            self,
            memory_momentum=memory_momentum,
            momentum_power=momentum_power,
            memory_loss_start=memory_loss_start,
        )
        if update_size not in ('label', 'feature'):
            raise ValueError(
                f"MCIBIHead: update_size must be 'label' or 'feature', got {update_size!r}"
            )
        if memory_loss_start < 0:
            raise ValueError(
                f'MCIBIHead: memory_loss_start is a number of iterations, got {memory_loss_start}'
            )
        self.update_size = update_size
        self.momentum = AnnealedMomentum(memory_momentum, momentum_power)
        self.bank = self._build_bank(bank, FeatureBank, channels=self.channels)
        if self.bank.channels != self.channels:
            raise ValueError(
                "MCIBIHead: the memory stores the head's own channels; bank channels="
                f'{self.bank.channels} must equal channels={self.channels}'
            )
        self.memory_loss_start = memory_loss_start
        self.consistency = self._build_consistency(
            map(MODELS.build, as_list(loss_memory)), prefix='memory_'
        )

    def read_memory(self, weights: Tensor) -> Tensor:
        """Dataset-level representations (MCIBI eq. 12): [B, K, h, w] to C'_bi [B, C, h, w]."""
        return self.bank.vote(weights)

    def classify_memory(self) -> Tensor:
        """Logits [K, K, 1, 1] of the vectors in memory (MCIBI eq. 15)."""
        vectors = self.bank.read()[:, :, None, None].to(self.conv_seg.weight.dtype)
        with _running_statistics(self.final_conv):
            return self.cls_seg(vectors)

    def memory_losses(self, pixels: Tensor, labels: Tensor) -> Dict[str, Tensor]:
        """See the base class: the classifier learns the memory too (MCIBI eq. 15 and 17).

        A loss is called as `loss(logits [K, K, 1, 1], labels [K, 1, 1], weight=..., ignore_index=
        ...)`, with weights that make its mean the one over the classes in memory.
        """
        filled = self.bank.read('filled')
        num_filled = filled.sum()
        batch = dict(pixels=pixels, labels=labels)
        if not len(self.consistency.losses):
            losses = self.consistency(batch)
        else:
            logits = self.classify_memory()
            classes = torch.arange(self.num_classes, device=logits.device)
            counted = filled & (self.bank.read('num_updates') >= self.memory_loss_start)
            weight = counted.to(logits.dtype) * (self.num_classes / counted.sum().clamp(min=1))
            losses = self.consistency(
                batch,
                logits,
                classes[:, None, None],
                weight=weight[:, None, None].to(logits.dtype),
                ignore_index=self.ignore_index,
            )
            right = logits.detach().flatten(1).argmax(dim=1) == classes
            losses['acc_memory'] = 100 * (right & filled).sum() / num_filled.clamp(min=1)
        losses['stat_filled_classes'] = num_filled.to(pixels.dtype)
        return losses

    def update_bank(self, pixels: Tensor, labels: Tensor) -> Dict[str, Tensor]:
        """Moves the bank (MCIBI eq. 6 to 10), by features at the size of the labels or at theirs.

        Args:
            pixels (Tensor): R [B, C, h, w].
            labels (Tensor): [B, H, W].

        Returns:
            dict[str, Tensor]: `stat_memory_momentum` and `stat_left_out_pixels`; see the class.
        """
        if self.update_size == 'feature':
            labels = labels_at_feature_size(labels, pixels.shape[2:]).flatten()
            pixels = self.embed(pixels).flatten(0, 2)
        momentum = self.momentum.now()
        counted = self.bank.update_(pixels, labels, momentum, self.ignore_index, self.align_corners)
        if counted is None:
            return {}
        return dict(
            stat_memory_momentum=pixels.new_full((), momentum),
            stat_left_out_pixels=counted.left_out,
        )
