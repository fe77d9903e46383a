"""What every memory bank has in common: how it is read, moved, shared, restored and looked at."""

import logging
from abc import ABC, abstractmethod
from typing import Any, Dict, List, Optional, Tuple

import mmengine.dist as dist
import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from ...errors import InputError
from ...utils import of_own_class
from .initial_memory import InitialMemory


def in_backward() -> bool:
    """Whether autograd is running a backward pass, as when activation checkpointing recomputes."""
    return torch._C._current_graph_task_id() != -1


class MemoryBank(nn.Module, ABC):
    """Non-learnable class memory: buffers changed in place, equal on all ranks.

    Heads, tools/init_memory.py, BankHealthHook and the analysis tools use only the methods
    that are defined here, so a bank of your own works with all of them. A subclass defines

    - `memory_name`, the buffer that is read: [K, C], or [K, N, C] with N vectors a class; any
      other form comes with a :meth:`class_vectors` of its own;
    - :meth:`update_`, how a batch moves it;
    - :meth:`_set_initial`, how it takes start values from a file;
    - and, where the defaults don't fit, :meth:`filled_classes`, :meth:`watch` and :meth:`health`.

    All state is in registered buffers, so it is saved, restored and moved with the module.
    mmengine wraps models with `broadcast_buffers=False`; :meth:`synchronize_` gives every rank the
    bank of rank 0, before its first use in training and after a load.

    Args:
        init (str, optional): Path of a file that tools/init_memory.py has written. It is read by
            :meth:`take_initial_` and by nothing else, so prediction doesn't need it.
    """

    memory_name: str
    num_classes: int
    num_updates: Tensor
    memory_sizes: Tuple[str, ...] = ('num_classes', 'num_distributions', 'channels')

    def __init__(self, init: Optional[str] = None):
        super().__init__()
        self.initial_path = init
        self._synchronized = False
        self._before_update: Optional[Dict[str, Tensor]] = None
        self._watched: Optional[Tensor] = None

    # ---- what a bank of its own says ----

    @abstractmethod
    def update_(self, vectors: Tensor, labels: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Moves the bank by a batch over all ranks, in place, if :meth:`begin_update` says so.

        Args:
            vectors (Tensor): [P, C], what the head gives of each pixel.
            labels (Tensor): [P].

        Returns:
            The counts that the subclass defines; None if nothing moved.
        """

    @abstractmethod
    def _set_initial(self, memory: InitialMemory) -> None:
        """Checks the shape of `memory` and takes its vectors."""

    # ---- what is asked of any bank ----

    def class_vectors(self) -> Tensor:
        """The memory as [K, N, C], in the space of what the head embeds; see :meth:`read`."""
        memory = self.read()
        return memory if memory.dim() == 3 else memory[:, None]

    def filled_classes(self) -> Tensor:
        """Bool [K], whether a class has its vectors; here all of them from the start."""
        memory = getattr(self, self.memory_name)
        return torch.ones(len(memory), dtype=torch.bool, device=memory.device)

    def similarity(self, vectors: Tensor) -> Tensor:
        """Dot product with every vector of the memory; of unit vectors the cosine.

        Args:
            vectors (Tensor): [..., C].

        Returns:
            Tensor: [..., K, N], in the type of `vectors`, whatever autocast says.

        Raises:
            ValueError: The vectors are of another length.
        """
        memory = self.class_vectors()
        if vectors.shape[-1] != memory.shape[-1]:
            raise ValueError(
                f'{type(self).__name__}: needs vectors [..., {memory.shape[-1]}], got '
                f'{list(vectors.shape)}'
            )
        with torch.autocast(vectors.device.type, enabled=False):
            products = F.linear(vectors, memory.flatten(0, 1).to(vectors.dtype))
        return products.unflatten(-1, memory.shape[:2])

    def nearest(self, vectors: Tensor, classes: Tensor) -> Tensor:
        """Which of the N vectors of its class each pixel is most similar to.

        Args:
            vectors (Tensor): [..., C].
            classes (Tensor): int64 [...] in 0..K-1.

        Returns:
            Tensor: int64 [...] in 0..N-1.

        Raises:
            ValueError: Vectors and classes don't fit each other, or the bank.
        """
        if vectors.shape[:-1] != classes.shape:
            raise ValueError(
                f'{type(self).__name__}: needs vectors [..., C] and classes [...] of the same '
                f'pixels, got {list(vectors.shape)} and {list(classes.shape)}'
            )
        similarity = self.similarity(vectors.flatten(0, -2))
        return of_own_class(similarity, classes.flatten()).argmax(dim=1).view(classes.shape)

    def watch(self) -> None:
        """Begin to count what :meth:`health` tells."""
        self._watched = self.class_vectors().clone()

    def unwatch(self) -> None:
        """Count no longer."""
        self._watched = None

    @torch.no_grad()
    def health(self) -> Dict[str, float]:
        """State of the bank since :meth:`watch` or the last call of this; starts a new interval.

        Returns:
            dict[str, float]: `bank_drift`, the mean angle in degrees between each vector now and
            at the start of the interval; `bank_filled`, the number of classes in memory.

        Raises:
            RuntimeError: Nothing was counted: :meth:`watch` hasn't been called.
        """
        before, self._watched = self._watched, self.class_vectors().clone()
        if before is None:
            raise RuntimeError(f'{type(self).__name__}: call watch() before health()')
        chord = F.normalize(self._watched, dim=-1) - F.normalize(before, dim=-1)
        # small angles, which the arc of the cosine can't tell from none
        angles = torch.rad2deg(2 * torch.asin(chord.norm(dim=-1).div(2).clamp(max=1)))
        # a vector that was just filled has nothing to have drifted from
        had_one = before.norm(dim=-1) > 0
        drift = torch.where(had_one, angles, 0).sum() / had_one.sum().clamp(min=1)
        return dict(bank_drift=float(drift), bank_filled=int(self.filled_classes().sum()))

    def _check_pixels(
        self, vectors: Tensor, labels: Tensor, channels: Optional[int], maps: bool, **others: Any
    ) -> None:
        """Refuses vectors and labels that aren't of the same pixels.

        Args:
            vectors (Tensor): [P, C]; with `maps` [B, C, h, w] too.
            labels (Tensor): [P]; with `maps` [B, H, W] too.
            channels (int | None): C, None for any.
            maps (bool): Whether maps are taken.
            **others: Name and tensor, or None, of what has a first dimension of P as well.

        Raises:
            ValueError: Names the shapes that are taken and that were given.
        """
        shape, given = tuple(vectors.shape), tuple(labels.shape)
        listed = len(shape) == 2 and given == shape[:1]
        mapped = maps and len(shape) == 4 and len(given) == 3 and given[0] == shape[0]
        if not (listed or mapped) or channels not in (None, shape[1]):
            width = 'C' if channels is None else channels
            raise ValueError(
                f'{type(self).__name__}: needs vectors [P, {width}] and labels [P] of the same '
                + (f'pixels, or maps [B, {width}, h, w] and [B, H, W]' if maps else 'pixels')
                + f', got {list(shape)} and {list(given)}'
            )
        if labels.is_floating_point():
            raise ValueError(
                f'{type(self).__name__}: labels are whole numbers, got {labels.dtype}; give '
                'labels.long()'
            )
        for name, tensor in others.items():
            if tensor is not None and len(tensor) != shape[0]:
                raise ValueError(
                    f'{type(self).__name__}: {name} must be of the same {shape[0]} pixels, got '
                    f'{list(tensor.shape)}'
                )

    def read(self, name: Optional[str] = None) -> Tensor:
        """The memory, or the buffer `name`, as the current iteration sees it, without gradient.

        In training it is a copy, so that the in-place update doesn't reach into a graph that is
        still to be differentiated. While autograd recomputes a checkpointed forward pass, it is
        what it was before this iteration's update.
        """
        name = name or self.memory_name
        buffer = getattr(self, name)
        if not self.training:
            return buffer
        if self._before_update is not None and in_backward():
            return self._before_update[name]
        copy = buffer.clone()
        # does something in a compiled model alone, whose backward pass would form the copy anew,
        # from a bank that has moved by then; imported here, as in PyTorch, because it takes long
        import torch._dynamo

        torch._dynamo.graph_break()
        return copy

    def vote(self, weights: Tensor) -> Tensor:
        """Class weights times the memory: MDRL eq. 9, and with one vector a class MCIBI eq. 12.

        Args:
            weights (Tensor): Class weights [B, K, h, w].

        Returns:
            Tensor: [B, N * Z, h, w], channels of distribution 0 first.

        Raises:
            ValueError: The weights are of another shape.
        """
        stacked = self.class_vectors().flatten(1).to(weights.dtype)  # [K, N * Z]
        if weights.dim() != 4 or weights.shape[1] != stacked.shape[0]:
            raise ValueError(
                f'{type(self).__name__}: needs class weights [B, {stacked.shape[0]}, h, w], got '
                f'{list(weights.shape)}'
            )
        return F.conv2d(weights, stacked.t()[:, :, None, None])

    def begin_update(self) -> bool:
        """Keeps the memory that this iteration's forward pass has read.

        Returns:
            bool: False while autograd recomputes a forward pass that has had its update.
        """
        if in_backward() and self._before_update is not None:
            return False
        self._before_update = {
            name: buffer.clone() for name, buffer in self.named_buffers(recurse=False)
        }
        return True

    def stand_still(self) -> None:
        """Marks a forward pass without gradients, which moves nothing.

        Reentrant activation checkpointing runs its first pass without gradients; the bank is then
        updated by the pass that is recomputed in the backward pass.
        """
        self._before_update = None

    @torch.no_grad()
    def take_initial_(self) -> Dict[str, Tensor]:
        """Start values from the file named by `init`, if one is named.

        Returns:
            dict[str, Tensor]: State of the layers of the head that made these vectors, empty where
            no file is named. The vectors mean something only to a head that has it.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is something else, or of another shape than the bank.
        """
        if self.initial_path is None:
            return {}
        memory = InitialMemory.load(self.initial_path)
        self._set_initial(memory)
        self._synchronized = False
        return memory.embedding

    @torch.no_grad()
    def synchronize_(self) -> None:
        """Takes rank 0's buffers, once after construction and once after each load."""
        if self._synchronized:
            return
        for buffer in self.buffers():
            dist.broadcast(buffer, src=0)
        self._synchronized = True

    def _load_from_state_dict(
        self,
        state_dict: Dict[str, Tensor],
        prefix: str,
        local_metadata: dict,
        strict: bool,
        missing_keys: List[str],
        unexpected_keys: List[str],
        error_msgs: List[str],
    ) -> None:
        """A bank of another size isn't loaded, nor is a part of it; the message says what to do.

        Raises:
            InputError: The checkpoint's bank has rows that aren't finite. mmengine only logs what
                doesn't fit, and one such row spreads to every pixel of every prediction.
        """
        for name, _ in self.named_buffers(recurse=False):
            self._refuse_not_finite(prefix + name, state_dict.get(prefix + name))
        key = prefix + self.memory_name
        own = getattr(self, self.memory_name).shape
        if key not in state_dict:
            print_log(
                f'the checkpoint has no {key}: a fresh memory bank starts',
                'current',
                logging.WARNING,
            )
        elif state_dict[key].shape != own:
            error_msgs.append(self._size_message(key, tuple(state_dict[key].shape), tuple(own)))
            state_dict = {
                name: value for name, value in state_dict.items() if not name.startswith(prefix)
            }
            missing_keys, unexpected_keys = [], []  # one message says it all
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._synchronized = False
        self._before_update = None

    @staticmethod
    def _refuse_not_finite(key: str, value: Optional[Tensor]) -> None:
        if value is None or not value.is_floating_point() or value.is_meta:
            return
        # a bank of one's own may have a number a class, [K], or one in all
        value = value.reshape(len(value) if value.ndim else 1, -1)
        rows = (~value.isfinite()).any(dim=1).nonzero().flatten()
        if len(rows):
            some = ', '.join(map(str, rows[:10].tolist())) + (', ...' if len(rows) > 10 else '')
            raise InputError(
                f'{key} in the checkpoint is not finite in {len(rows)} of {len(value)} rows '
                f'(classes {some}): the training had diverged before. Take an earlier '
                'checkpoint, or delete the key from this one to start a fresh memory bank'
            )

    def _size_message(self, key: str, found: tuple, own: tuple) -> str:
        if len(found) != len(own):
            return (
                f'{key} in the checkpoint has shape {list(found)}, that of this bank is '
                f'{list(own)}: it is the memory of another head. Load it into that head, or '
                'delete the key from the checkpoint; a fresh memory bank starts'
            )
        differ = [
            f'{name}={there} in the checkpoint and {here} in this bank'
            for name, there, here in zip(self.memory_sizes, found, own)
            if there != here
        ]
        return (
            f'size mismatch for {key}: {", ".join(differ)}. To go on with the memory of the '
            'checkpoint, set these in the config to its values (num_classes of the head and '
            'of the dataset; the others in `bank`, or `channels` of the head); otherwise a '
            'fresh memory bank starts'
        )

    def __getstate__(self) -> dict:
        # what is kept for the iteration under way isn't a pickled or copied module's
        return {**self.__dict__, '_before_update': None, '_watched': None}
