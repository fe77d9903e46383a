"""Both class consistency losses and their gradient, chunk by chunk over pixels.

The similarity of P pixels with K * N distributions is the largest tensor of MDRL. The plain losses
hold it, its exponents and their gradients whole, and pass over each from main memory. Here a
chunk of pixels has its similarities formed, both losses taken and the gradient with respect to its
embeddings finished while the chunk is still in cache, in the forward pass: two matrix
products altogether, and no memory that grows with P * K * N.
"""

from typing import Dict, NamedTuple, Optional, Sequence

import mmengine.dist as dist
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...utils import all_reduce_sum_, global_sum, max_over_middle
from .class_consistency_loss import (
    ClassGlobalConsistencyLoss,
    ClassLocalConsistencyLoss,
    class_balanced_weights,
    pixel_classes,
)

# Size of a chunk's buffer: stays in the cache of a CPU, is enough work for a GPU.
_CHUNK_BYTES = {'cpu': 1 << 23, 'cuda': 1 << 26}
_LEAST_PIXELS = 512
# Below, exp(cosine / temperature) leaves float32 and the plain losses' log space is needed.
_SMALLEST_TEMPERATURE = 0.025


class FusedConsistency(NamedTuple):
    """Result of :func:`fused_class_consistency`."""

    losses: Dict[str, Tensor]  # by loss_name
    classes: Tensor  # [P], K for pixels without a class
    own_scores: Tensor  # [P, N] similarity with the distributions of the own class, no gradient
    correct: Tensor  # bool [P], whether the nearest distribution is of the own class


def can_fuse(losses: Sequence[nn.Module]) -> bool:
    """Whether these losses are known here, one of a kind, of a temperature that float32 bears."""
    kinds = [type(loss) for loss in losses]
    return (
        len(set(kinds)) == len(kinds) > 0
        and set(kinds) <= {ClassLocalConsistencyLoss, ClassGlobalConsistencyLoss}
        and all(_temperature(loss) >= _SMALLEST_TEMPERATURE for loss in losses)
    )


def fused_class_consistency(
    embeddings: Tensor,
    distributions: Tensor,
    labels: Tensor,
    losses: Sequence[nn.Module],
    ignore_index: int = 255,
    chunk_size: Optional[int] = None,
) -> FusedConsistency:
    """The same numbers as `loss(bank.similarity(embeddings), labels)` for each of `losses`.

    The losses share one gradient, formed in the forward pass, so they must be differentiated
    together with equal weight, as in the sum that mmengine makes of all losses. To weigh them
    apart, use their `loss_weight`; anything else raises in backward.

    Args:
        embeddings (Tensor): Unit vectors [B, h, w, Z].
        distributions (Tensor): Unit vectors [K, N, Z]; no gradient is formed for them.
        labels (Tensor): [B, H, W], any size.
        losses (Sequence[nn.Module]): For which :func:`can_fuse` holds.
        ignore_index (int): Label that doesn't count. Defaults to 255.
        chunk_size (int, optional): Pixels at a time. Defaults to what suits the device's cache.

    Returns:
        FusedConsistency: Losses, and what the bank's update needs of the same product.
    """
    num_classes, num_distributions, _ = distributions.shape
    by_type = {type(loss): loss for loss in losses}
    local = by_type.get(ClassLocalConsistencyLoss)
    contrast = by_type.get(ClassGlobalConsistencyLoss)
    feature_size = embeddings.shape[:3]
    classes = pixel_classes(labels, feature_size[1:], num_classes, ignore_index).flatten()
    flat = embeddings.flatten(0, 2)

    plain_local = local is not None and local.formulation == 'paper'
    each_positive = contrast is not None and contrast.formulation == 'released'
    local_weights = contrast_weights = None
    if plain_local or (contrast is not None and not each_positive):
        labelled = (classes < num_classes).to(flat)
        mean_weights = labelled / all_reduce_sum_(labelled.sum()).clamp(min=1)
    if plain_local:
        local_weights = local.loss_weight * mean_weights
    if each_positive:
        balanced_weights = class_balanced_weights(classes, num_classes).to(flat)
        contrast_weights = contrast.loss_weight * balanced_weights
    elif contrast is not None:
        contrast_weights = contrast.loss_weight * mean_weights

    local_value, contrast_value, class_scores, own_scores, correct = _ChunkedLosses.apply(
        flat,
        distributions,
        classes,
        local_weights,
        contrast_weights,
        each_positive,
        _temperature(contrast),
        local is not None and not plain_local,
        chunk_size or _default_chunk(flat, num_classes * num_distributions),
    )

    if dist.get_world_size() > 1:  # one collective for both
        local_value, contrast_value = global_sum(torch.stack([local_value, contrast_value]))
    results = {}
    if plain_local:
        results[local.loss_name] = local_value
    elif local is not None:
        scores = class_scores.view(*feature_size, num_classes)
        results[local.loss_name] = local.from_class_scores(
            scores, labels, ignore_index, in_bands=True
        )
    if contrast is not None:
        results[contrast.loss_name] = contrast_value
    return FusedConsistency(results, classes, own_scores, correct)


def _temperature(loss: Optional[nn.Module]) -> float:
    """Temperature of a loss; 1 where it has none."""
    if isinstance(loss, ClassGlobalConsistencyLoss) and loss.formulation == 'paper':
        return loss.temperature
    return 1.0


def _default_chunk(embeddings: Tensor, num_rows: int) -> int:
    chunk_bytes = _CHUNK_BYTES.get(embeddings.device.type, _CHUNK_BYTES['cuda'])
    # fewer pixels make poor matrix products, whatever the cache
    return max(_LEAST_PIXELS, chunk_bytes // (num_rows * embeddings.element_size()))


def _known_to_be_one(scalar: Tensor) -> bool:
    """Whether a scalar is 1, as far as can be told without waiting for a device."""
    return scalar.device.type == 'cpu' and bool(scalar == 1)


class _ChunkedLosses(torch.autograd.Function):
    """This rank's share of both losses, which have one gradient: that of their sum."""

    @staticmethod
    def forward(
        ctx,
        embeddings,
        distributions,
        classes,
        local_weights,
        contrast_weights,
        each_positive,
        temperature,
        want_class_scores,
        chunk_size,
    ):
        K, N, Z = distributions.shape
        num_pixels = len(embeddings)
        has_gradient = local_weights is not None or contrast_weights is not None
        has_local = local_weights is not None or want_class_scores
        # Pixels run along the last, contiguous dimension, so every reduction is over whole rows of
        # pixels. The temperature goes into the bank, so the products are already what is
        # exponentiated.
        rows = distributions.reshape(K * N, Z) / temperature
        without_class = classes == K
        own_class = classes.masked_fill(without_class, 0)[None]  # such pixels have no weight
        own_columns = own_class[None].expand(1, N, -1)  # of [K, N, P]

        gradient = torch.empty_like(embeddings)
        own_scores = embeddings.new_empty(N, num_pixels)
        best = embeddings.new_empty(num_pixels)
        # terms of both means; what is a logarithm of a probability is the probability at first
        terms = embeddings.new_ones(2, num_pixels)
        local_terms, contrast_terms = terms
        if local_weights is not None:
            slope_weights = (local_weights * temperature)[None]
            own_weights = slope_weights.neg()
        class_scores = nearest = None
        if want_class_scores:
            class_scores = embeddings.new_empty(num_pixels, K)
            nearest = torch.empty(num_pixels, K, dtype=torch.int32, device=classes.device)
        # as many chunks, of equal size
        num_chunks = max(1, -(-num_pixels // chunk_size))
        chunk_size = max(1, -(-num_pixels // num_chunks))
        buffer = embeddings.new_empty(K * N * chunk_size)

        for start in range(0, num_pixels, chunk_size):
            part = slice(start, min(start + chunk_size, num_pixels))
            length = part.stop - part.start
            s = buffer[: K * N * length].view(K * N, length)
            by_class = s.view(K, N, length)
            own_row, columns, own = own_class[:, part], own_columns[..., part], own_scores[:, part]

            torch.mm(rows, embeddings[part].t(), out=s)
            torch.gather(by_class, 0, columns, out=own[None])
            if has_local:
                largest, nearest_row = max_over_middle(by_class)  # [K, p]
                torch.amax(largest, 0, out=best[part])
            else:
                torch.amax(s, 0, out=best[part])

            # from here on, similarities turn into the gradient with respect to them, in place
            if contrast_weights is None:
                s.zero_()
            else:
                weights = contrast_weights[part]
                s.exp_()
                own_e = own.exp()
                total, own_total = s.sum(dim=0), own_e.sum(dim=0)
                if each_positive:
                    # log(e_n + B) - s_n for each positive n, mean over n
                    denominators = own_e + (total - own_total)
                    torch.mean(denominators.log() - own, 0, out=contrast_terms[part])
                    s *= weights * denominators.reciprocal().mean(dim=0)
                    own_slope = weights / N * (own_e / denominators - 1)
                else:
                    torch.div(own_total, total, out=contrast_terms[part])
                    scale = weights / total
                    s *= scale
                    own_slope = own_e * (scale - weights / own_total)
                by_class.scatter_(0, columns, own_slope[None])

            if local_weights is not None:
                if temperature != 1:
                    largest *= temperature
                # cosines are within 2 of each other, so that no probability is near 0
                slope = largest.softmax(dim=0)
                torch.gather(slope, 0, own_row, out=local_terms[None, part])
                slope *= slope_weights[:, part]
                slope.scatter_add_(0, own_row, own_weights[:, part])
                s.scatter_add_(0, nearest_row, slope)
            elif want_class_scores:
                class_scores[part] = largest.t()
                nearest[part] = nearest_row.t()

            if has_gradient:
                torch.mm(s.t(), rows, out=gradient[part])

        # none of these is an input or an output, so plain attributes keep them without a cycle
        ctx.gradient = gradient if has_gradient else None
        ctx.rows, ctx.nearest = rows if want_class_scores else None, nearest
        ctx.like = dict(dtype=embeddings.dtype, device=embeddings.device)
        ctx.embeddings_shape = embeddings.shape
        ctx.chunk_size = chunk_size
        ctx.temperature = temperature
        ctx.differentiated = False
        ctx.set_materialize_grads(False)
        terms[: 1 if each_positive else 2].log_().neg_()
        correct = own_scores.amax(dim=0) >= best
        own_scores = own_scores.t() * temperature
        if want_class_scores:
            class_scores *= temperature
        local_share, contrast_share = (
            embeddings.new_zeros(())
            if weights is None
            else terms.mul_(weights).masked_fill_(without_class, 0.0).sum()
            for terms, weights in (
                (local_terms, local_weights),
                (contrast_terms, contrast_weights),
            )
        )
        shared = (local_share, local_weights), (contrast_share, contrast_weights)
        ctx.has_gradient = [weights is not None for _, weights in shared]
        ctx.mark_non_differentiable(
            *[share for share, weights in shared if weights is None], own_scores, correct
        )
        return local_share, contrast_share, class_scores, own_scores, correct

    @staticmethod
    @once_differentiable
    def backward(ctx, local_grad, contrast_grad, score_grad, _own, _correct):
        if ctx.differentiated:
            raise RuntimeError(
                'the fused class consistency losses can be differentiated only once: set '
                'fuse_losses=False in MDRLHead to use retain_graph=True'
            )
        ctx.differentiated = True
        # scaled in place: nobody else holds it, and a copy would be as large as the embeddings
        gradient, ctx.gradient = ctx.gradient, None
        loss_grad = local_grad if ctx.has_gradient[0] else contrast_grad
        # of a plain sum both have the very same gradient
        if all(ctx.has_gradient) and local_grad is not contrast_grad:
            absent = gradient.new_zeros(())
            # an assertion that doesn't wait for the device
            torch._assert_async(
                (absent if local_grad is None else local_grad)
                == (absent if contrast_grad is None else contrast_grad),
                'the fused class consistency losses share one gradient and must be summed with '
                'equal weight: set fuse_losses=False in MDRLHead to differentiate them apart',
            )
        if gradient is None or loss_grad is None:
            gradient = torch.zeros(ctx.embeddings_shape, **ctx.like)
        elif not _known_to_be_one(loss_grad):
            gradient.mul_(loss_grad)
        if score_grad is not None:
            rows, nearest = ctx.rows, ctx.nearest
            slopes = score_grad * ctx.temperature  # rows are the bank over the temperature
            for part, slope, row in zip(
                *(tensor.split(ctx.chunk_size) for tensor in (gradient, slopes, nearest))
            ):
                scattered = rows.new_zeros(len(part), len(rows)).scatter_(1, row.long(), slope)
                part.addmm_(scattered, rows)
        return gradient, *[None] * 8
