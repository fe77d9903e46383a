"""The three class-aware losses together, in two passes over the features and one for the gradient.

Each loss by itself (class_aware_loss.py) holds maps as large as the features, and autograd sums
their gradients in further ones. Here the class sums are one pass; distances to the centre, products
with the centres and all that follows from them are taken chunk by chunk while a chunk is in
cache; what is kept for the backward pass is one [P, K] coefficient, from which a third
pass forms the gradient of all three losses at once.
"""
import math
from typing import Dict, NamedTuple, Optional, Sequence

import mmengine.dist as dist
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...utils import all_reduce_sum_
from .class_aware_loss import (_SUM_RANGE, InterClassCenterToCenterLoss,
                               InterClassCenterToPixelLoss, IntraClassCenterToPixelLoss,
                               check_pixels, class_rows, class_sums)
from .class_consistency_loss import at_least_float32

# Size of a chunk of features: about the L2 cache of a core, or enough work for a GPU.
_CHUNK_BYTES = {'cpu': 1 << 19, 'cuda': 1 << 26}


class _PixelOptions(NamedTuple):
    """What the pass over pixels has to know of the losses; None for a loss that isn't there."""
    intra: Optional[str]  # formulation
    inter: Optional[str]
    inter_loss: Optional[InterClassCenterToPixelLoss]
    num_classes: int
    chunk_size: int


def can_fuse_class_aware(losses: Sequence[nn.Module]) -> bool:
    """Whether these are the losses of CAR, at most one of each kind."""
    kinds = [type(loss) for loss in losses]
    return len(set(kinds)) == len(kinds) > 0 and set(kinds) <= {
        IntraClassCenterToPixelLoss, InterClassCenterToCenterLoss, InterClassCenterToPixelLoss}


def fused_class_aware(features: Tensor,
                      labels: Tensor,
                      num_classes: int,
                      losses: Sequence[nn.Module],
                      ignore_index: int = 255,
                      chunk_size: Optional[int] = None) -> Dict[str, Tensor]:
    """The same numbers as `loss(features, labels, *class_centers(...))` for each of `losses`.

    Args:
        features (Tensor): [P, C].
        labels (Tensor): [P].
        num_classes (int): K.
        losses (Sequence[nn.Module]): For which :func:`can_fuse_class_aware` holds.
        ignore_index (int): Label that doesn't count. Defaults to 255.
        chunk_size (int, optional): Pixels at a time. Defaults to what suits the device's cache.

    Returns:
        dict[str, Tensor]: Scalars by `loss_name`, in the order of `losses`.
    """
    check_pixels(features, labels)
    features = at_least_float32(features)
    by_type = {type(loss): loss for loss in losses}
    intra = by_type.get(IntraClassCenterToPixelLoss)
    inter = by_type.get(InterClassCenterToPixelLoss)
    rows = class_rows(labels, num_classes, ignore_index)
    options = _PixelOptions(
        intra and intra.formulation, inter and inter.formulation, inter, num_classes,
        chunk_size or _default_chunk(features))
    with torch.autocast(features.device.type, enabled=False):
        centers, counts, intra_total, inter_total = _ClassAware.apply(features, rows, options)
        labelled = rows < num_classes
        results = {}
        for loss in losses:
            if loss is intra:
                value = loss.finish(intra_total, labelled)
            elif loss is inter:
                value = loss.finish(inter_total, labelled)
            else:
                value = loss(None, None, centers, counts)
            name = loss.loss_name
            results[name] = results[name] + value if name in results else value
    return results


def _default_chunk(features: Tensor) -> int:
    chunk_bytes = _CHUNK_BYTES.get(features.device.type, _CHUNK_BYTES['cuda'])
    return max(64, chunk_bytes // (features.shape[1] * features.element_size()))


class _ClassAware(torch.autograd.Function):
    """Centres, counts, and this rank's sums over pixels of L_intra-c2p and L_inter-c2p."""

    @staticmethod
    def forward(ctx, features, rows, options):
        K, C = options.num_classes, features.shape[1]
        sums = all_reduce_sum_(class_sums(features, rows, K))
        counts = sums[:, -1].clone()
        centers = sums[:, :-1] / counts.clamp(min=1)[:, None]
        wants_gradient = ctx.needs_input_grad[0]

        intra_total, inter_total = features.new_zeros(2)
        slopes = None
        if options.inter is not None:
            divisor = math.sqrt(C) if options.inter_loss.scale else 1.0
            keys = centers / divisor
            own_products = torch.cat([centers.square().sum(dim=1) / divisor, keys.new_zeros(1)])
            margin = options.inter_loss.margin(counts)
            absent = options.inter_loss.absent(counts)
            if wants_gradient:
                slopes = features.new_empty(len(features) * (K + 1))
        if options.intra is not None:
            table = torch.cat([centers, centers.new_zeros(1, C)])
            order = 2 if options.intra == 'paper' else 1
        chunk = min(options.chunk_size, len(features))
        buffers = features.new_empty(2, (K + 1) * chunk)

        for start in range(0, len(features), chunk or 1):
            part = slice(start, min(start + chunk, len(features)))
            x, own_rows = features[part], rows[part]
            length = len(x)
            labelled = (own_rows < K).to(x)
            if options.intra is not None:
                difference = table.index_select(0, own_rows).sub_(x)
                distances = torch.linalg.vector_norm(difference, order, dim=1)
                if order == 2:
                    distances = distances.square_()
                intra_total += torch.where(own_rows < K, distances, 0.0).sum() / C
            if options.inter is None:
                continue

            # Pixels run along the last, contiguous dimension, so reductions over classes are over
            # whole rows of pixels. The last row takes what is scattered for pixels of no class.
            similarity, excess = (b[:(K + 1) * length].view(K + 1, length) for b in buffers)
            if slopes is not None:
                excess = slopes[start * (K + 1):part.stop * (K + 1)].view(K + 1, length)
            own_rows = own_rows[None]
            torch.mm(keys, x.t(), out=similarity[:K])
            similarity.scatter_(0, own_rows, own_products[own_rows])
            if absent is not None:
                similarity[:K].masked_fill_(absent[:, None], -torch.inf)
            similarity[K] = -torch.inf
            similarity.sub_(similarity.amax(dim=0)).exp_()
            similarity.div_(similarity.sum(dim=0))  # A, eq. 11
            torch.ge(similarity, margin, out=excess)
            excess.scatter_(0, own_rows, 0)
            number = excess.sum(dim=0)
            excess.mul_(similarity)
            above = excess.sum(dim=0)
            d = above - margin * number
            if options.inter == 'paper':
                weight = 2 * d * labelled
                inter_total += torch.where(labelled > 0, d.square(), 0.0).sum()
            else:
                held = d.clamp(*_SUM_RANGE)
                weight = (held == d).to(x)
                inter_total += held.sum()
            if slopes is not None:
                # of d by the products: A_j (1 where j exceeds the margin, less `above`)
                excess.addcmul_(similarity, above, value=-1).mul_(weight)
                excess.scatter_(0, own_rows, 0)

        ctx.options = options
        ctx.keys_divisor = divisor if options.inter is not None else 1.0
        ctx.chunk = chunk
        ctx.save_for_backward(features, rows, centers, counts, slopes)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(counts)
        return centers, counts, intra_total, inter_total

    @staticmethod
    @once_differentiable
    def backward(ctx, center_grad, _counts, intra_grad, inter_grad):
        features, rows, centers, counts, slopes = ctx.saved_tensors
        options, (K, C) = ctx.options, centers.shape
        gradient = torch.empty_like(features)
        # A pixel's gradient has a part that depends on its class only: table[class].
        table = features.new_zeros(K + 1, C)
        if center_grad is not None:
            # Every rank has the gradient of the same loss; see utils.global_sum for the factor.
            table[:K] = center_grad / counts.clamp(min=1)[:, None] * dist.get_world_size()
        by_intra = intra_grad is not None and options.intra is not None
        by_inter = inter_grad is not None and options.inter is not None
        if by_intra:
            factor = intra_grad / C
            own_centers = torch.cat([centers, centers.new_zeros(1, C)])
            if options.intra == 'paper':
                factor = 2 * factor
        if by_inter:
            keys = torch.cat([centers * (inter_grad / ctx.keys_divisor), centers.new_zeros(1, C)])

        for start in range(0, len(features), ctx.chunk or 1):
            part = slice(start, min(start + ctx.chunk, len(features)))
            x, own_rows, out = features[part], rows[part], gradient[part]
            torch.index_select(table, 0, own_rows, out=out)
            if by_intra:
                difference = own_centers.index_select(0, own_rows)
                torch.sub(x, difference, out=difference)
                if options.intra == 'released':
                    difference.sign_()
                out.addcmul_(difference, ((own_rows < K) * factor)[:, None])
            if by_inter:
                coefficients = slopes[start * (K + 1):part.stop * (K + 1)].view(K + 1, len(x))
                out.addmm_(coefficients.t(), keys)
        return gradient, None, None
