"""Base of the heads with a memory: what moves the bank, and what is asked of any such head."""

import inspect
from abc import abstractmethod
from typing import Any, Dict, Iterable, List, Optional, Tuple, Type, TypeVar

import torch
from mmseg.registry import MODELS
from mmseg.utils import SampleList
from torch import Tensor, nn

from ...utils import add_loss, did_you_mean, registered_class
from ..memory import MemoryBank
from .cascade_stage import CascadeStage
from .label_check import batch_labels

Bank = TypeVar('Bank', bound=MemoryBank)


class MemoryLosses(nn.Module):
    """The losses that train a memory, all called with the same arguments.

    Its forward hook, :meth:`MemoryHead._move_bank`, moves the bank, so the losses of an
    iteration see the bank as it was before that iteration.

    Args:
        losses (Iterable[nn.Module]): Each of them with a `loss_name`.
        prefix (str): Before the names. Defaults to ''.
    """

    def __init__(self, losses: Iterable[nn.Module], prefix: str = ''):
        super().__init__()
        self.losses = nn.ModuleList(losses)
        self.prefix = prefix

    def forward(self, batch: Dict[str, Any], *args: Any, **kwargs: Any) -> Dict[str, Tensor]:
        """
        Args:
            batch (dict): What the bank is moved by, for the hook: the arguments of
                :meth:`MemoryHead.update_bank`.
            *args, **kwargs: Of each loss.

        Returns:
            dict[str, Tensor]: Losses by name, to which the hook adds scalars to log.
        """
        losses: Dict[str, Tensor] = {}
        for loss in self.losses:
            add_loss(losses, f'{self.prefix}{loss.loss_name}', loss(*args, **kwargs))
        return losses


class MemoryHead(CascadeStage):
    """A head with a memory of the classes.

    A subclass builds the memory (`bank`) and the losses that train it (`consistency`), and says how
    the losses are called (:meth:`memory_losses`) and how a batch moves the bank
    (:meth:`update_bank`).

    The bank moves in one place, a forward hook on `consistency` (:meth:`_move_bank`), and stands
    still in eval, where gradients are off, and where no parameter of the head is trained.
    """

    bank: MemoryBank
    consistency: MemoryLosses
    # whether `fold_` has made it one for inference only
    folded = False
    # what `fold_` takes off
    training_parts: Tuple[str, ...] = ('consistency', 'loss_decode')
    # layers between the backbone's feature maps and what the memory stores
    embedding_layers: Tuple[str, ...] = ('bottleneck',)

    def _build_bank(self, cfg: dict, kind: Type[Bank], **defaults: Any) -> Bank:
        """The memory that `cfg` describes, of this `kind`; `defaults` are what it leaves out."""
        fits = isinstance(cfg, dict)
        if fits:
            options = {'type': kind, **defaults, **cfg, 'num_classes': self.num_classes}
            cls = registered_class(options)
            # None: not registered, about which the registry has its own message
            fits = cls is None or (inspect.isclass(cls) and issubclass(cls, kind))
        if not fits:
            raise ValueError(
                f'{type(self).__name__}: bank must be the config of a {kind.__name__}, such as '
                f"dict(type='{kind.__name__}'), got {cfg!r}"
            )
        known = {'type', *inspect.signature(cls).parameters} if cls is not None else set(options)
        unknown = set(options) - known
        if unknown:
            raise TypeError(
                f'{type(self).__name__}: bank has no option {sorted(unknown)}'
                + did_you_mean(unknown, known)
            )
        return MODELS.build(options)

    def _build_consistency(self, losses: Iterable[nn.Module], prefix: str = '') -> MemoryLosses:
        """The losses that train the memory, with the hook that moves the bank."""
        consistency = MemoryLosses(losses, prefix)
        # a bound method: copies of the head (EMA) get a hook to their own bank
        consistency.register_forward_hook(self._move_bank)
        return consistency

    def init_weights(self) -> None:
        """See the base class. A bank that starts from a file brings the layers that made it.

        Raises:
            ValueError: The layers in the file aren't this head's.
        """
        done = getattr(self, '_is_init', False)
        super().init_weights()
        state = {} if done else self.bank.take_initial_()
        if state:
            # with the bank as it is now, or it would miss its own part
            state = {**self.bank.state_dict(prefix='bank.'), **state}
            try:
                unexpected = self.load_state_dict(state, strict=False).unexpected_keys
            except RuntimeError as error:  # shapes
                unexpected = str(error).splitlines()[1:]
            if unexpected:
                raise ValueError(
                    f'{type(self).__name__}: {self.bank.initial_path} was made by layers that this '
                    f'head does not have ({unexpected[0].strip()}); write it anew with '
                    'tools/init_memory.py and the config of this model'
                )

    def begin_step(self, batch_data_samples: SampleList) -> Tensor:
        """What every training step starts with: labels [B, H, W]; the bank equal on all ranks."""
        self._needs_memory('be trained')
        if self.training:
            self.bank.synchronize_()
        return batch_labels(batch_data_samples, self.num_classes, self.ignore_index)

    @abstractmethod
    def memory_losses(self, *args: Any, **kwargs: Any) -> Dict[str, Tensor]:
        """Calls `consistency`: the losses that train the memory, and then the update by its hook.

        Args:
            pixels (Tensor): R [B, C, h, w].
            labels (Tensor): [B, H, W].

        Returns:
            dict[str, Tensor]: Losses, and scalars to log under names without 'loss'.
        """

    def _move_bank(
        self, consistency: nn.Module, inputs: tuple, losses: Dict[str, Tensor]
    ) -> Optional[Dict[str, Tensor]]:
        """Forward hook of `consistency`: what moves the bank, the only one, after the losses."""
        if not self.training:
            return None
        if not torch.is_grad_enabled():
            self.bank.stand_still()
            return None
        if not any(parameter.requires_grad for parameter in self.parameters()):
            return None
        return {**losses, **self.update_bank(**inputs[0])}

    @abstractmethod
    def update_bank(self, *args: Any, **batch: Any) -> Dict[str, Tensor]:
        """Moves the bank by what :meth:`memory_losses` has handed to `consistency` as `batch`.

        Returns:
            dict[str, Tensor]: Scalars to log, under names without 'loss'.
        """

    # ---- what the memory stores ----

    def embed(self, pixels: Tensor) -> Tensor:
        """R [B, C, h, w] to what the memory stores of it, [B, h, w, C]."""
        return pixels.permute(0, 2, 3, 1)

    @abstractmethod
    def pixel_features(self, inputs: List[Tensor]) -> Tensor:
        """The pixels that the memory is about, R [B, C, h, w], from the backbone's maps."""

    def memory_vectors(self, inputs: List[Tensor]) -> Tensor:
        """What the memory stores of each pixel, [B, h, w, C or Z], from the backbone's maps."""
        self._needs_memory('say what its memory stores')
        return self.embed(self.pixel_features(inputs))

    def embedding_state(self) -> Dict[str, Tensor]:
        """State of the layers that make, from feature maps, what the memory stores."""
        return {
            key: value.detach().cpu().clone()
            for key, value in self.state_dict().items()
            if key.split('.')[0] in self.embedding_layers
        }

    @abstractmethod
    def predict_and_embed(self, inputs: List[Tensor]) -> Tuple[Tensor, Tensor]:
        """Logits [B, K, h, w] and what the memory stores of each pixel [B, h, w, C or Z]."""

    @torch.no_grad()
    def distribution_map(self, inputs: List[Tensor]) -> Tuple[Tensor, Tensor]:
        """Which of its class's vectors each pixel belongs to: the nearest of its predicted class.

        Args:
            inputs (list[Tensor]): Feature maps of the backbone.

        Returns:
            tuple[Tensor]: Predicted class in 0..K-1 and index of the vector in 0..N-1, both int64
            [B, h, w], at feature size.
        """
        self._needs_memory('say which distribution a pixel belongs to')
        logits, vectors = self.predict_and_embed(inputs)
        classes = logits.argmax(dim=1)
        return classes, self.bank.nearest(vectors, classes)

    def _forward_feature(self, inputs: List[Tensor]) -> Tensor:
        """What K-Net asks its `kernel_generate_head` for, which a head with a memory can't be.

        Raises:
            NotImplementedError: Says what to do.
        """
        raise NotImplementedError(
            f'{type(self).__name__} can not be the kernel_generate_head of K-Net '
            '(IterativeDecodeHead), which has losses of its own and never calls those that move '
            'the memory. Take DGCWHead or a head of MMSegmentation there, and give this one to '
            'auxiliary_head, or train it without K-Net'
        )

    def _needs_memory(self, what: str) -> None:
        if self.folded:
            raise RuntimeError(
                f'{type(self).__name__} has been folded for inference, so it can not {what} any '
                'more; load the checkpoint into a new model'
            )
