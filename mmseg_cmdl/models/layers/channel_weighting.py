"""Distance guided channel weighting (DGCW, 3.2): channels in which two pixels differ count more.

Source: "Distance Guided Channel Weighting for Semantic Segmentation", eq. 1 to 5. The range of j
printed under eq. 5 (0..C-1) is a slip: the text sums over all pixels.

Of B images with n = h * w pixels and C channels, the equations form weights and relations
[C, n, n]. Here pixels i are taken a few at a time, everything of theirs is worked out while it is
in cache, and the backward pass does the same again: memory grows with n, not with its square.
"""

from contextlib import nullcontext
from typing import Any, Callable, Iterator, List, Optional, Tuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...registry import MODELS
from ...utils import check_finite

NORMS = ('sum', 'softmax', 'tanh')

# Below this sum of squared differences two pixels count as equal, and their weights go to zero.
# Its root bounds the gradient, which grows as 1 / distance.
_EQUAL = 1e-12

# Size of one of the buffers of a chunk: within the L2 cache of a core, or enough work for a GPU.
_CHUNK_BYTES = {'cpu': 1 << 20, 'cuda': 1 << 26}


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
        chunk_size (int, optional): Pixels i at a time, of one image or, where an image has fewer,
            of several. Defaults to what suits the device's cache.

    Returns:
        Tensor: [B, n, C].
    """
    if chunk_size is None:
        row = query.shape[1] * query.shape[2] * query.element_size()
        chunk_size = max(1, _CHUNK_BYTES.get(query.device.type, 1 << 26) // max(1, row))
    return _RelationSum.apply(query, key, value, weight, norm, chunk_size)


def _whole_relation_sum(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor, norm: str, chunk_size: int
) -> Tensor:
    """:func:`relation_sum` in plain operations, without a loop and without bounded memory."""
    weighted = channel_weights(query, key, norm) * value.unsqueeze(2)
    return F.linear(weighted, weight).relu().sum(dim=2)


def _chunks(
    like: Tensor, chunk_size: int, count: int
) -> Iterator[Tuple[slice, slice, List[Tensor]]]:
    """Goes through the rows of `like` [B, n, C].

    Yields:
        tuple: Slice of images, slice of pixels i, and `count` buffers [images, i, n, C] whose
        memory every chunk uses anew.
    """
    batch, pixels, channels = like.shape
    images, rows = max(1, chunk_size // pixels), min(chunk_size, pixels)
    size = min(images, batch) * rows * pixels * channels
    memory = [like.new_empty(size) for _ in range(count)]
    for b in range(0, batch, images):
        for i in range(0, pixels, rows):
            last_b, last_i = min(b + images, batch), min(i + rows, pixels)
            shape = (last_b - b, last_i - i, pixels, channels)
            size = shape[0] * shape[1] * pixels * channels
            yield (
                slice(b, last_b),
                slice(i, last_i),
                [buffer[:size].view(shape) for buffer in memory],
            )


def _normalise(distances: Tensor, norm: str, out: Tensor) -> Optional[Tensor]:
    """Weights from squared differences; gives the sums over channels that 'sum' needs."""
    if norm == 'softmax':
        torch.softmax(distances, dim=-1, out=out)
    elif norm == 'tanh':
        torch.tanh(distances, out=out)
    else:
        total = distances.sum(dim=-1, keepdim=True)
        torch.mul(distances, total.clamp(min=_EQUAL).reciprocal_(), out=out)
        return total
    return None


def _to_distances_(
    grad: Tensor, inner: Tensor, weights: Tensor, total: Optional[Tensor], norm: str
) -> Tensor:
    """Turns the gradient of the weights into that of the squared differences, in place.

    Args:
        grad (Tensor): Of the weights [..., C].
        inner (Tensor): Sum over channels of weights times `grad` [..., 1].
        weights (Tensor): [..., C]; overwritten.
        total (Tensor, optional): What :func:`_normalise` gave.
        norm (str): See :func:`channel_weights`.
    """
    if norm == 'softmax':
        return grad.sub_(inner).mul_(weights)
    if norm == 'tanh':
        return grad.addcmul_(grad, weights.square_(), value=-1)
    assert total is not None  # what 'sum' was divided by
    # under the guard the divisor is constant
    return grad.sub_(inner.mul_(total >= _EQUAL)).mul_(total.clamp_(min=_EQUAL).reciprocal_())


class _RelationSum(torch.autograd.Function):
    """:func:`relation_sum` that keeps its inputs only, and forms every chunk again in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        weight: Tensor,
        norm: str,
        chunk_size: int,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, weight)
        ctx.norm, ctx.chunk_size = norm, chunk_size
        result = torch.empty_like(query)
        for images, rows, (hidden, weighted) in _chunks(query, chunk_size, 2):
            q, k, v = query[images, rows, None], key[images, None], value[images, rows, None]
            _normalise(torch.sub(q, k, out=hidden).square_(), norm, out=weighted)
            torch.mm(weighted.mul_(v).flatten(0, 2), weight.t(), out=hidden.flatten(0, 2))
            result[images, rows] = hidden.relu_().sum(dim=2)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        with torch.autocast(grad.device.type, enabled=False):
            query, key, value, weight = ctx.saved_tensors
            grads = _backward(grad, query, key, value, weight, ctx.norm, ctx.chunk_size)
            return (*grads, None, None)


def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    norm: str,
    chunk_size: int,
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of Q, K, V and G from that of :func:`relation_sum`."""
    grad_query, grad_value = torch.empty_like(query), torch.empty_like(value)
    grad_key, grad_weight = torch.zeros_like(key), torch.zeros_like(weight)
    for images, rows, buffers in _chunks(query, chunk_size, 4):
        differences, weights, weighted, hidden = buffers
        q, k, v = query[images, rows, None], key[images, None], value[images, rows, None]
        torch.mul(torch.sub(q, k, out=differences), differences, out=hidden)
        total = _normalise(hidden, norm, out=weights)
        torch.mul(weights, v, out=weighted)
        flat_weighted, flat_hidden = weighted.flatten(0, 2), hidden.flatten(0, 2)
        torch.mm(flat_weighted, weight.t(), out=flat_hidden)

        hidden.gt_(0).mul_(grad[images, rows, None])  # through ReLU; the sum hands each j the same
        grad_weight.addmm_(flat_hidden.t(), flat_weighted)
        torch.mm(flat_hidden, weight, out=flat_weighted)

        torch.mul(weighted, weights, out=hidden)
        grad_value[images, rows] = hidden.sum(dim=2)
        inner = hidden @ v.transpose(-1, -2)
        grad_distances = _to_distances_(weighted.mul_(v), inner, weights, total, norm)
        grad_differences = grad_distances.mul_(differences)  # twice this
        grad_query[images, rows] = grad_differences.sum(dim=2)
        grad_key[images] -= grad_differences.sum(dim=1)
    return grad_query.mul_(2), grad_key.mul_(2), grad_value, grad_weight


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
            return self._update(x, _whole_relation_sum)
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ValueError(
                f'ChannelWeighting(channels={self.channels}) needs a map of shape '
                f'[B, {self.channels}, h, w], got {tuple(x.shape)}'
            )
        # the meta device, on which operations are counted, has no autocast
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            return self._update(x.to(self.g2.weight.dtype), relation_sum)

    def _update(self, x: Tensor, form: Callable) -> Tensor:
        """DGCW eq. 1 and 5 around the form of the sum, which is in float32 or better."""
        query, key, value = (
            conv(x).flatten(2).transpose(1, 2).contiguous()
            for conv in (self.query, self.key, self.value)
        )
        # called and not read, so that a parametrization, an adapter or a hook of the layer acts
        one_hot = torch.eye(self.channels, dtype=x.dtype, device=x.device)
        weight = self.g1(one_hot[:, :, None, None]).flatten(1).t()
        precise = torch.promote_types(query.dtype, torch.float32)
        query, key, value, weight = (t.to(precise) for t in (query, key, value, weight))
        related = form(query, key, value, weight, self.norm, self.chunk_size)
        return x + self.g2(related.to(x.dtype).transpose(1, 2).reshape(x.shape))

    def extra_repr(self) -> str:
        """What tells one from another when a model is printed."""
        return f'channels={self.channels}, norm={self.norm!r}, chunk_size={self.chunk_size}'


def _exporting() -> bool:
    """Whether a graph is being recorded that must not depend on the sizes of this example."""
    compiler = getattr(torch, 'compiler', None)
    exporting = getattr(compiler, 'is_exporting', None)
    return (
        torch.jit.is_tracing()
        or torch.onnx.is_in_onnx_export()
        or (exporting is not None and exporting())
    )
