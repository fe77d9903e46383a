"""MCIBIHead: one running feature per class, mixed into every pixel (MCIBI)."""

import logging
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional, Union

import torch
from mmengine.logging import MessageHub, print_log
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from ...registry import MODELS
from ...utils import as_list, check_choice, check_finite, labels_at_feature_size
from ..memory import FeatureBank
from ..memory.memory_bank import in_backward
from .dataset_context_head import DatasetContextHead
from .loss_check import check_losses_of_vectors


class AnnealedMomentum:
    """Momentum of the memory (MCIBI, eq. 7): the weight of what is new.

    ``m_t = (1 - t / T)^power (m_0 - m_0 / 100) + m_0 / 100``, with the iteration t and the number
    of iterations T of the runner that trains. Where none does, t is the number of the bank's
    updates and T `max_iters`; without that the momentum stays at m_0, which is said once in the
    log. A function of t alone, so resuming needs no state.

    Args:
        start (float): m_0.
        power (float): 0 keeps the momentum at m_0.
        max_iters (int, optional): T where no runner trains.
    """

    def __init__(self, start: float, power: float, max_iters: Optional[int] = None):
        if not 0 <= start <= 1:
            raise ValueError(
                'MCIBIHead: memory_momentum is the weight of the new features and must be in '
                f'[0, 1], got {start}'
            )
        if power < 0:
            raise ValueError(f'MCIBIHead: momentum_power must be at least 0, got {power}')
        if max_iters is not None and (not isinstance(max_iters, int) or max_iters < 1):
            raise ValueError(
                'MCIBIHead: max_iters is the number of training iterations and must be an integer '
                f'of at least 1, got {max_iters!r}'
            )
        self.start = start
        self.power = power
        self.max_iters = max_iters
        self._told = False

    def at(self, iteration: Union[int, Tensor], num_iterations: int) -> Union[float, Tensor]:
        """m_t; a tensor of an iteration that is one."""
        if isinstance(iteration, Tensor):
            iteration = iteration.double()
        left = 1 - iteration / num_iterations
        left = left.clamp(min=0) if isinstance(left, Tensor) else max(0.0, left)
        return left**self.power * (self.start - self.start / 100) + self.start / 100

    def now(self, num_updates: Tensor) -> Union[float, Tensor]:
        """m_t at the runner's iteration, or at that of the bank.

        Args:
            num_updates (Tensor): Number of updates of the bank, a scalar.
        """
        hub = MessageHub.get_current_instance()
        num_iterations = hub.get_info('max_iters')
        # a runner that is done leaves its iteration behind, but not its stage
        if hub.get_info('loop_stage') is not None and num_iterations:
            return self.at(hub.get_info('iter'), num_iterations)
        if self.max_iters is not None:
            return self.at(num_updates, self.max_iters)
        if self.power > 0 and not self._told:
            self._told = True
            print_log(
                f'MCIBIHead: no Runner trains, so nobody says how long the training is, and the '
                f"memory's momentum stays at {self.start} instead of falling (MCIBI eq. 7). Set "
                'max_iters of the head to the number of iterations; momentum_power=0 says that a '
                'constant momentum is meant',
                'current',
                logging.WARNING,
            )
        return self.start


def _statistics(module: nn.Module) -> Dict[str, Tensor]:
    """Copies of the running statistics of all batch norms inside, by name."""
    return {
        name: buffer.clone()
        for name, buffer in module.named_buffers()
        if name.rpartition('.')[2] in ('running_mean', 'running_var')
    }


@contextmanager
def _norms_in_eval(module: nn.Module) -> Iterator[None]:
    """Batch norms inside use running statistics, and leave them."""
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
        max_iters (int, optional): Number of training iterations, for the momentum, where no Runner
            of mmengine trains: in a loop of your own. Defaults to None.
        **kwargs: Options of :class:`DatasetContextHead`: `context`, `fusion`, `hard_aggregate`, ...

    The classifier sees the memory with the running statistics of its batch norm. As a batch of
    their own, the K vectors (with zeros for classes not seen yet) would be normalised by
    statistics that no pixel is classified with, and would leave them in the running ones.

    :meth:`loss` also logs `acc_memory`, the percentage of the classes in memory whose vector is
    classified right, `stat_filled_classes`, how many there are, `stat_memory_momentum`, and
    `stat_left_out_pixels`, the number of labelled pixels of all ranks whose features aren't finite
    and were kept from the memory.
    """

    bank: FeatureBank

    def __init__(
        self,
        *args: Any,
        bank: dict = dict(type='FeatureBank'),
        loss_memory: Union[dict, List[dict], None] = dict(
            type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0
        ),
        memory_loss_start: int = 0,
        memory_momentum: float = 0.9,
        momentum_power: float = 0.9,
        update_size: str = 'label',
        max_iters: Optional[int] = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        check_finite(
            self,
            memory_momentum=memory_momentum,
            momentum_power=momentum_power,
            memory_loss_start=memory_loss_start,
        )
        check_choice(self, ('label', 'feature'), update_size=update_size)
        if memory_loss_start < 0:
            raise ValueError(
                f'MCIBIHead: memory_loss_start is a number of iterations, got {memory_loss_start}'
            )
        self.update_size = update_size
        self.momentum = AnnealedMomentum(memory_momentum, momentum_power, max_iters)
        self.bank = self._build_bank(bank, FeatureBank, channels=self.channels)
        if self.bank.channels != self.channels:
            raise ValueError(
                "MCIBIHead: the memory stores the head's own channels; bank channels="
                f'{self.bank.channels} must equal channels={self.channels}'
            )
        self.memory_loss_start = memory_loss_start
        self._memory_statistics: Optional[Dict[str, Tensor]] = None
        self.consistency = self._build_consistency(
            map(MODELS.build, as_list(loss_memory)), prefix='memory_'
        )
        check_losses_of_vectors(self, 'loss_memory', self.consistency.losses)

    def classify_memory(self) -> Tensor:
        """Logits [K, K, 1, 1] of the vectors in memory (MCIBI eq. 15)."""
        vectors = self.bank.read()[:, :, None, None].to(self.conv_seg.weight.dtype)
        # A copy, because a further forward pass moves the statistics before this one's backward
        # pass has read them; and the same copy where autograd recomputes this pass.
        if self._memory_statistics is None or not in_backward():
            self._memory_statistics = _statistics(self.final_conv)
        with _norms_in_eval(self.final_conv):
            vectors = functional_call(self.final_conv, self._memory_statistics, (vectors,))
        return BaseDecodeHead.cls_seg(self, vectors)

    def memory_losses(self, pixels: Tensor, labels: Tensor) -> Dict[str, Tensor]:
        """See the base class: the classifier is also trained on the memory (MCIBI eq. 15 and 17).

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
        momentum = self.momentum.now(self.bank.num_updates)
        counted = self.bank.update_(pixels, labels, momentum, self.ignore_index, self.align_corners)
        if counted is None:
            return {}
        return dict(
            stat_memory_momentum=pixels.new_zeros(()) + momentum,
            stat_left_out_pixels=counted.left_out,
        )
