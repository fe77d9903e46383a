"""What every memory bank of this package has in common: how it is read, shared and restored."""
from contextlib import contextmanager

import mmengine.dist as dist
import torch
from torch import Tensor, nn


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
    """

    memory_name: str

    def __init__(self):
        super().__init__()
        self._synchronized = False
        self._before_update = None

    def read(self, copy: bool = True) -> Tensor:
        """The memory as the current iteration sees it, without gradient.

        In training it is a copy, so that the in-place update doesn't reach into a graph that is
        still to be differentiated; `copy=False` is for readers whose graph doesn't hold it. While
        autograd recomputes a checkpointed forward pass, it is the memory from before this
        iteration's update.
        """
        memory = getattr(self, self.memory_name)
        if not self.training:
            return memory
        if self._before_update is not None and in_backward():
            return self._before_update
        return memory.clone() if copy else memory

    def begin_update(self) -> bool:
        """Keeps the memory that this iteration's forward pass has read.

        Returns:
            bool: False while autograd recomputes a forward pass: it has had its update.
        """
        if in_backward():
            return False
        self._before_update = getattr(self, self.memory_name).clone()
        return True

    @torch.no_grad()
    def synchronize_(self) -> None:
        """Takes rank 0's buffers, once after construction and once after each load."""
        if self._synchronized:
            return
        for buffer in self.buffers():
            dist.broadcast(buffer, src=0)
        self._synchronized = True

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._synchronized = False
        self._before_update = None

    def __getstate__(self):
        # the kept copy belongs to the iteration under way, not to a pickled or copied module
        return {**self.__dict__, '_before_update': None}
