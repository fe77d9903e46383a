"""Distance guided channel weighting (DGCW, 3.2): channels in which two pixels differ count more.

Source: "Distance Guided Channel Weighting for Semantic Segmentation", eq. 1 to 5. The range of j
printed under eq. 5 (0..C-1) is a slip: the text sums over all pixels.

Of B images with n = h * w pixels and C channels, the equations form weights and relations
[C, n, n]. Here pixels i are taken a few at a time, and the backward pass forms each of these chunks
anew: memory grows with n, not with its square.
"""

from contextlib import nullcontext
from typing import Optional

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...registry import MODELS
from ...utils import check_finite

NORMS = ('sum', 'softmax', 'tanh')

# Below this sum of squared differences two pixels count as equal, and their weights go to zero.
# Its root bounds the gradient, which grows as 1 / distance.
_EQUAL = 1e-12

# Size of [B, i, j, C] of a chunk: within the cache of a core, or enough work for a GPU.
_CHUNK_BYTES = {'cpu': 1 << 21, 'cuda': 1 << 26}


def channel_weights(query: Tensor, key: Tensor, norm: str = 'sum') -> Tensor:
    """DGCW eq. 2 and 3, whole: ``M = (Q_i - K_j)^2`` normalised over channels.

    Args:
        query (Tensor): Q [..., i, C].
        key (Tensor): K [..., j, C].
        norm (str): 'sum' divides by the sum of all channels, and gives zeros where Q_i equals K_j
            in all of them; 'softmax'; or 'tanh', channel by channel.

    Returns:
        Tensor: [..., i, j, C].
    """
    distances = (query.unsqueeze(-2) - key.unsqueeze(-3)).square()
    if norm == 'softmax':
        return distances.softmax(dim=-1)
    if norm == 'tanh':
        return distances.tanh()
    return distances / distances.sum(dim=-1, keepdim=True).clamp(min=_EQUAL)


def relation_sum(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    norm: str = 'sum',
    chunk_size: Optional[int] = None,
) -> Tensor:
    """``sum_j ReLU(G (W_ij * V_i))``: DGCW eq. 2 to 5 but for the second conv of g, by chunks of i.

    Args:
        query (Tensor): Q [B, n, C].
        key (Tensor): K [B, n, C].
        value (Tensor): V [B, n, C].
        weight (Tensor): G [C, C], the first conv of g.
        norm (str): Of the weights; see :func:`channel_weights`.
        chunk_size (int, optional): Pixels i at a time. Defaults to what suits the device's cache.

    Returns:
        Tensor: [B, n, C].
    """
    if chunk_size is None:
        chunk_bytes = _CHUNK_BYTES.get(query.device.type, _CHUNK_BYTES['cuda'])
        size = max(1, query.numel() * query.element_size())  # 0 for no images
        chunk_size = max(1, chunk_bytes // size)
    sums = [
        checkpoint(
            whole_relation_sum, q, key, v, weight, norm,
            use_reentrant=False, preserve_rng_state=False,
        )
        for q, v in zip(query.split(chunk_size, dim=1), value.split(chunk_size, dim=1))
    ]  # fmt: skip
    return torch.cat(sums, dim=1)


def whole_relation_sum(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor, norm: str
) -> Tensor:
    """:func:`relation_sum` at once: forms [B, i, j, C]."""
    weighted = channel_weights(query, key, norm) * value.unsqueeze(2)
    return F.linear(weighted, weight).relu().sum(dim=2)


@MODELS.register_module()
class ChannelWeighting(BaseModule):
    """Distance guided channel weighting (DGCW eq. 1 to 5), for a map of any neck or head.

    ``out_i = F_i + sum_j g(W_ij * V_i)`` over all pixels j of the image, where
    ``W_ij = f((Q_i - K_j)^2)`` weighs channels and g is 1x1 conv, ReLU, 1x1 conv. The second conv
    of g is linear, so it is applied once to the sum. Cost grows with (h*w)^2 * C^2, memory with
    h*w * C. An exported graph (torch.export, ONNX, TorchScript) has no loop over chunks, so that
    its sizes stay dynamic, and does hold one [h*w, h*w, C] tensor.

    NOTE: not in the paper: the convs of g have no bias. The sum over j would multiply a bias by
    h*w, and its step under SGD by (h*w)^2.

    The sum, not a mean, over j is the paper's: it grows with h*w, so test at the size of the
    training crops (by sliding windows).

    Args:
        channels (int): C, the channels of the map.
        norm (str): f: 'sum' (DBS of DGCW, table 1), 'softmax' or 'tanh'. Defaults to 'sum'.
        chunk_size (int, optional): Pixels i at a time. Defaults to what suits the device's cache;
            the result doesn't depend on it.
        init_cfg (dict, optional): Initialization config.

    Raises:
        ValueError: An unknown `norm`, a `chunk_size` below 1, or a map of other channels.
    """

    def __init__(
        self,
        channels: int,
        norm: str = 'sum',
        chunk_size: Optional[int] = None,
        init_cfg: Optional[dict] = None,
    ):
        super().__init__(init_cfg)
        if norm not in NORMS:
            raise ValueError(f'ChannelWeighting: norm must be one of {NORMS}, got {norm!r}')
        check_finite(self, chunk_size=chunk_size)
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(
                f'ChannelWeighting: chunk_size must be at least 1 (or None for what '
                f'suits the device), got {chunk_size}'
            )
        self.channels, self.norm, self.chunk_size = channels, norm, chunk_size
        self.query, self.key, self.value = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.g1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.g2 = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Relates every pixel to every other.

        Args:
            x (Tensor): F [B, C, h, w].

        Returns:
            Tensor: [B, C, h, w], residual included. Under autocast everything here is computed and
            returned in float32, whatever `x` is: differences cancel in half precision, and a sum
            over all pixels leaves float16.
        """
        if _exporting():  # no comparison of sizes and no context manager in the graph
            return self._update(x, whole=True)
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ValueError(
                f'ChannelWeighting(channels={self.channels}) needs a map of shape '
                f'[B, {self.channels}, h, w], got {tuple(x.shape)}'
            )
        # the meta device, on which operations are counted, has no autocast
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            return self._update(x.to(self.g2.weight.dtype))

    def _update(self, x: Tensor, whole: bool = False) -> Tensor:
        """DGCW eq. 1 and 5 around the sum, which is in float32 or better."""
        query, key, value = (
            conv(x).flatten(2).transpose(1, 2).contiguous()
            for conv in (self.query, self.key, self.value)
        )
        # called and not read, so that a parametrization, an adapter or a hook of the layer acts
        one_hot = torch.eye(self.channels, dtype=x.dtype, device=x.device)
        weight = self.g1(one_hot[:, :, None, None]).flatten(1).t()
        precise = torch.promote_types(query.dtype, torch.float32)
        query, key, value, weight = (t.to(precise) for t in (query, key, value, weight))
        if whole:
            related = whole_relation_sum(query, key, value, weight, self.norm)
        else:
            related = relation_sum(query, key, value, weight, self.norm, self.chunk_size)
        return x + self.g2(related.to(x.dtype).transpose(1, 2).reshape(x.shape))

    def extra_repr(self) -> str:
        """What tells one from another when a model is printed."""
        return f'channels={self.channels}, norm={self.norm!r}, chunk_size={self.chunk_size}'


def _exporting() -> bool:
    """Whether a graph is being recorded that must not depend on the sizes of this example."""
    exporting = getattr(getattr(torch, 'compiler', None), 'is_exporting', bool)  # PyTorch 2.7
    return torch.jit.is_tracing() or torch.onnx.is_in_onnx_export() or exporting()
