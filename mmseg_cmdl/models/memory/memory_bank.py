"""What every memory bank of this package has in common: how it is read, shared and restored."""

import logging
from abc import abstractmethod
from contextlib import contextmanager
from numbers import Integral
from typing import Dict, Optional

import mmengine.dist as dist
import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from .initial_memory import InitialMemory


def in_backward() -> bool:
    """Whether autograd is running a backward pass, as when activation checkpointing recomputes."""
    return torch._C._current_graph_task_id() != -1


@contextmanager
def float32_island(device_type: str):
    """Turns autocast off and gradients too: banks are updated in full precision."""
    with torch.no_grad(), torch.autocast(device_type, enabled=False):
        yield


class MemoryBank(nn.Module):
    """Non-learnable class memory: buffers changed in place, equal on all ranks.

    - All state is in registered buffers, so it is saved, restored and moved with the module.
      Subclasses name the one that is read in `memory_name`.
    - :meth:`read` gives what an iteration's forward pass sees; :meth:`begin_update` keeps it for
      activation checkpointing, which recomputes the forward pass after the bank has moved on.
    - :meth:`synchronize_` gives every rank the bank of rank 0, before its first use in training
      and after a load. mmengine wraps models with `broadcast_buffers=False`, so nobody else does.

    Args:
        init (str, optional): Path of a file that tools/init_memory.py has written. It is read by
            :meth:`take_initial_` and by nothing else, so prediction doesn't need it.
    """

    memory_name: str
    memory_sizes = ('num_classes', 'num_distributions', 'channels')

    def __init__(self, init: Optional[str] = None):
        super().__init__()
        self.initial_path = init
        self._synchronized = False
        self._before_update = None

    def _check_counts(self, **counts: int) -> None:
        for name, count in counts.items():
            if not isinstance(count, Integral) or count < 1:
                raise ValueError(
                    f'{type(self).__name__}: {name} must be an integer of at least 1, got {count!r}'
                )

    def read(self, copy: bool = True, name: Optional[str] = None) -> Tensor:
        """The memory, or the buffer `name`, as the current iteration sees it, without gradient.

        In training it is a copy, so that the in-place update doesn't reach into a graph that is
        still to be differentiated; `copy=False` is for readers whose graph doesn't hold it. While
        autograd recomputes a checkpointed forward pass, it is what it was before this iteration's
        update.
        """
        name = name or self.memory_name
        buffer = getattr(self, name)
        if not self.training:
            return buffer
        if self._before_update is not None and in_backward():
            return self._before_update[name]
        return buffer.clone() if copy else buffer

    def vote(self, weights: Tensor, kernel: Optional[Tensor] = None) -> Tensor:
        """Class weights times the memory: MDRL, eq. 9, and with one vector a class MCIBI, eq. 12.

        A 1x1 convolution that follows is linear in the bank, so ``kernel`` is applied to the bank
        first: a [K, out] matrix instead of N maps of Z channels, N times fewer operations.

        Args:
            weights (Tensor): Class weights [B, K, h, w].
            kernel (Tensor, optional): Weight [out, N * Z, 1, 1] of the 1x1 convolution.

        Returns:
            Tensor: [B, N * Z, h, w], channels of distribution 0 first; or [B, out, h, w].
        """
        stacked = self.read().flatten(1).to(weights.dtype)  # [K, N * Z]
        if kernel is not None:
            stacked = stacked @ kernel.to(weights.dtype).flatten(1).t()  # [K, out]
        return F.conv2d(weights, stacked.t()[:, :, None, None])

    @property
    def _update_dtype(self) -> torch.dtype:
        """float32 even where the bank is stored in half precision."""
        return torch.promote_types(getattr(self, self.memory_name).dtype, torch.float32)

    def begin_update(self) -> bool:
        """Keeps the memory that this iteration's forward pass has read.

        Returns:
            bool: False while autograd recomputes a forward pass: it has had its update.
        """
        if in_backward():
            return False
        self._before_update = {
            name: buffer.clone() for name, buffer in self.named_buffers(recurse=False)
        }
        return True

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

    @abstractmethod
    def _set_initial(self, memory: InitialMemory) -> None:
        """Checks the shape of `memory` and takes its vectors."""

    @torch.no_grad()
    def synchronize_(self) -> None:
        """Takes rank 0's buffers, once after construction and once after each load."""
        if self._synchronized:
            return
        for buffer in self.buffers():
            dist.broadcast(buffer, src=0)
        self._synchronized = True

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
        """A bank of another size isn't loaded, nor is a part of it; the message says what to do."""
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

    def __getstate__(self):
        # the kept copy belongs to the iteration under way, not to a pickled or copied module
        return {**self.__dict__, '_before_update': None}
