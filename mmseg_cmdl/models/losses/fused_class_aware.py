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

from ...utils import all_reduce_sum_, at_least_float32, class_rows
from .class_aware_loss import (
    _SUM_RANGE,
    InterClassCenterToCenterLoss,
    InterClassCenterToPixelLoss,
    IntraClassCenterToPixelLoss,
    check_pixels,
    class_sums,
)

# Size of what a chunk holds in buffers: stays in the cache of a CPU, is enough work for a GPU.
_CHUNK_BYTES = {'cpu': 1 << 22, 'cuda': 1 << 26}


class _PixelOptions(NamedTuple):
    """What the pass over pixels has to know of the losses; None for a loss that isn't there."""

    intra: Optional[str]  # formulation
    inter: Optional[str]
    inter_loss: Optional[InterClassCenterToPixelLoss]
    num_classes: int
    chunk_size: Optional[int]


def can_fuse_class_aware(losses: Sequence[nn.Module]) -> bool:
    """Whether these are the losses of CAR, at most one of each kind."""
    kinds = [type(loss) for loss in losses]
    return len(set(kinds)) == len(kinds) > 0 and set(kinds) <= {
        IntraClassCenterToPixelLoss,
        InterClassCenterToCenterLoss,
        InterClassCenterToPixelLoss,
    }


def fused_class_aware(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    losses: Sequence[nn.Module],
    ignore_index: int = 255,
    chunk_size: Optional[int] = None,
) -> Dict[str, Tensor]:
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
        intra and intra.formulation,
        inter and inter.formulation,
        inter,
        num_classes,
        chunk_size,
    )
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


def _chunk_pixels(features: Tensor, width: int, options: _PixelOptions) -> int:
    """How many pixels at a time, where buffers have `width` numbers for each."""
    chunk_bytes = _CHUNK_BYTES.get(features.device.type, _CHUNK_BYTES['cuda'])
    pixels = options.chunk_size or max(64, chunk_bytes // (width * features.element_size()))
    return max(1, min(pixels, len(features)))


class _ClassAware(torch.autograd.Function):
    """Centres, counts, and this rank's sums over pixels of L_intra-c2p and L_inter-c2p."""

    @staticmethod
    def forward(ctx, features, rows, options):
        K, (P, C) = options.num_classes, features.shape
        own_sums = class_sums(features, rows, K)  # of this rank
        sums = all_reduce_sum_(own_sums.clone())
        counts = sums[:, -1].clone()
        centers = sums[:, :-1] / counts.clamp(min=1)[:, None]
        labelled = (rows < K).to(features)
        intra_total, inter_total = features.new_zeros(2)
        divisor, slopes = 1.0, None
        # Everything as large as a chunk is allocated once: fresh pages cost more than the sums.
        # |x - mu|^2 = |x|^2 - 2 x.mu + |mu|^2, of which only the first is summed over pixels.
        expand = options.intra == 'paper' and options.inter is not None
        has_differences = options.intra is not None and not expand
        chunk = _chunk_pixels(features, C if has_differences else K + 1, options)
        if options.intra is not None:
            distances = features.new_empty(P)
            order = 2 if options.intra == 'paper' else 1
            if has_differences:
                padded_centers = torch.cat([centers, centers.new_zeros(1, C)])
                differences = features.new_empty(chunk, C)
        if options.inter is not None:
            if options.inter_loss.scale:
                divisor = math.sqrt(C)
            keys = centers / divisor
            own_products = torch.cat([centers.square().sum(dim=1), centers.new_zeros(1)]) / divisor
            own_products = own_products[rows]
            margin = torch.as_tensor(
                options.inter_loss.margin(counts), dtype=features.dtype, device=features.device
            )
            absent = options.inter_loss.absent(counts)
            similarities = features.new_empty((K + 1) * chunk)
            above, number, d = features.new_empty(3, P)
            if ctx.needs_input_grad[0]:
                slopes = features.new_empty(K + 1, P)
            else:
                excesses = torch.empty_like(similarities)

        for start in range(0, P, chunk):
            part = slice(start, min(start + chunk, P))
            x, own_rows = features[part], rows[part]
            if expand:
                torch.linalg.vector_norm(x, dim=1, out=distances[part])
            elif has_differences:
                difference = differences[: len(x)]
                torch.index_select(padded_centers, 0, own_rows, out=difference)
                torch.linalg.vector_norm(difference.sub_(x), order, dim=1, out=distances[part])
            if options.inter is None:
                continue

            # Pixels run along the last, contiguous dimension, so reductions over classes are over
            # whole rows of pixels. The last row takes what is scattered for pixels of no class.
            similarity = similarities[: (K + 1) * len(x)].view(K + 1, -1)
            if slopes is not None:
                excess = slopes[:, part]
            else:
                excess = excesses[: (K + 1) * len(x)].view(K + 1, -1)
            own_rows = own_rows[None]
            torch.mm(keys, x.t(), out=similarity[:K])
            similarity.scatter_(0, own_rows, own_products[None, part])
            if absent is not None:
                similarity[:K].masked_fill_(absent[:, None], -torch.inf)
            similarity[K] = -torch.inf
            similarity.sub_(similarity.amax(dim=0)).exp_()
            total = similarity.sum(dim=0)  # what is left to divide by for A, eq. 11
            torch.ge(similarity, total * margin, out=excess)
            excess.scatter_(0, own_rows, 0)
            torch.sum(excess, 0, out=number[part])
            excess.mul_(similarity)
            torch.div(excess.sum(dim=0), total, out=above[part])
            torch.addcmul(above[part], number[part], margin, value=-1, out=d[part])
            if slopes is not None:
                # Of d by the products, A_j (1 where j exceeds the margin, less `above`), times the
                # derivative of what becomes of d.
                excess.addcmul_(similarity, above[part], value=-1)
                if options.inter == 'paper':
                    outer = d[part] * labelled[part]
                else:
                    outer = d[part].clamp(*_SUM_RANGE) == d[part]
                excess.mul_(outer / total)
                excess.scatter_(0, own_rows, 0)

        if options.intra is not None:
            if order == 2:
                distances.square_()
            intra_total = torch.where(labelled > 0, distances, 0.0).sum(dtype=torch.float64)
            if expand:
                own_sums, mu = own_sums.double(), centers.double()
                of_class = own_sums[:, -1:] * mu - 2 * own_sums[:, :-1]
                intra_total = (intra_total + (of_class * mu).sum()).clamp(min=0)
            intra_total = (intra_total / C).to(features)
        if options.inter == 'paper':
            inter_total = torch.where(labelled > 0, d.square(), 0.0).sum()
        elif options.inter == 'released':
            inter_total = d.clamp(*_SUM_RANGE).sum()
        ctx.options, ctx.divisor = options, divisor
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
        chunk = _chunk_pixels(features, C, options)
        padding = centers.new_zeros(1, C)
        # A pixel's gradient has a part that depends on its class only: by_class[class].
        by_class = torch.zeros_like(centers)
        if center_grad is not None:
            # Every rank has the gradient of the same loss; see utils.global_sum for the factor.
            by_class = center_grad / counts.clamp(min=1)[:, None] * dist.get_world_size()
        signs = None
        if options.intra is not None and intra_grad is not None:
            if options.intra == 'paper':
                factors = (rows < K) * (2 * intra_grad / C)
                by_class = by_class - centers * (2 * intra_grad / C)
            else:
                factors = (rows < K) * (-intra_grad / C)  # times the sign of centre - feature
                padded_centers = torch.cat([centers, padding])
                signs = features.new_empty(chunk, C)
        else:
            factors = None
        by_class = torch.cat([by_class, padding])
        if options.inter is not None and inter_grad is not None:
            slope_factor = inter_grad / ctx.divisor * (2 if options.inter == 'paper' else 1)
            keys = torch.cat([centers * slope_factor, padding])
        else:
            slopes = None

        # What doesn't need the pixel's feature is summed in a buffer, so that the gradient, whose
        # pages are fresh, is written once.
        buffer = features.new_empty(chunk, C)
        pieces = [x.split(chunk) for x in (features, rows, gradient)]
        if slopes is not None:
            slope_pieces = slopes.t().split(chunk)
        if factors is not None:
            factor_pieces = factors[:, None].split(chunk)
        for i, (x, own_rows, out) in enumerate(zip(*pieces)):
            partial = buffer[: len(x)] if factors is not None else out
            torch.index_select(by_class, 0, own_rows, out=partial)
            if slopes is not None:
                partial.addmm_(slope_pieces[i], keys)
            if signs is not None:
                sign = torch.index_select(padded_centers, 0, own_rows, out=signs[: len(x)])
                x = sign.sub_(x).sign_()
            if factors is not None:
                torch.addcmul(partial, x, factor_pieces[i], out=out)
        return gradient, None, None
