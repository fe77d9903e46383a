"""Cross entropy at label size of scores at feature size, without a map of scores at label size.

`F.cross_entropy(F.interpolate(scores, size), classes)` holds [B, K, H, W] several times over, 64
times the scores themselves at stride 8. Resizing is linear: along each axis a product with a
matrix of two entries a row. Here a band of label rows is resized by these, its loss taken, and
the band's gradient brought back to feature size by their transposes while it is still in cache.
"""

from typing import Any, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...utils import BilinearTaps, at_least_float32

# Size of a band's scores: stays in the cache of a CPU, is enough work for a GPU.
_BAND_BYTES = {'cpu': 1 << 23, 'cuda': 1 << 26}


def resized_cross_entropy(
    scores: Tensor,
    classes: Tensor,
    align_corners: bool = False,
    band_rows: Optional[int] = None,
) -> Tensor:
    """Sum over pixels of the cross entropy of bilinearly resized scores.

    The same number as resizing with `F.interpolate`, then `F.cross_entropy(reduction='sum')`. The
    gradient is formed in the forward pass. One that is to be differentiated again
    (`create_graph=True`) is formed anew, by resizing first, with the memory that this takes.

    Args:
        scores (Tensor): [B, K, h, w].
        classes (Tensor): int64 [B, H, W] in 0..K, K for pixels that don't count.
        align_corners (bool): As for `F.interpolate`. Defaults to False.
        band_rows (int, optional): Rows of label pixels at a time. Defaults to what suits the
            device's cache.

    Returns:
        Tensor: Scalar, in float32 or the wider type of the scores.
    """
    scores = at_least_float32(scores)
    if band_rows is None:
        band_bytes = _BAND_BYTES.get(scores.device.type, _BAND_BYTES['cuda'])
        row_bytes = scores.shape[1] * classes.shape[2] * scores.element_size()
        band_rows = max(1, band_bytes // row_bytes)
    with torch.autocast(scores.device.type, enabled=False):
        return _ResizedCrossEntropy.apply(scores, classes, align_corners, band_rows)


class _ResizedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, classes: Tensor, align_corners: bool, band_rows: int
    ) -> Tensor:
        (B, K, h, w), (H, W) = scores.shape, classes.shape[1:]
        given, scores = scores, scores.contiguous()
        rows, cols = (
            BilinearTaps(size, cells, align_corners, scores).matrix
            for size, cells in ((H, h), (W, w))
        )
        widen = cols.t().contiguous()
        gradient = torch.zeros_like(scores)
        total = scores.new_zeros(())
        # as many bands, of equal height
        num_bands = -(-H // min(band_rows, H))
        band_rows = -(-H // num_bands)
        resized = scores.new_empty(K * band_rows * W)
        narrow = scores.new_empty(K * band_rows * w)

        for image in range(B):
            for start in range(0, H, band_rows):
                band = rows[start : start + band_rows]
                n = len(band)
                own = classes[image, start : start + n].reshape(1, -1)
                labelled = (own < K).to(scores)
                own = own.clamp(max=K - 1)
                # all pixels of the band along the last dimension: sums over classes are over rows
                s = resized[: K * n * W].view(K, n * W)
                by_row = s.view(K * n, W)
                torch.mm(torch.matmul(band, scores[image]).view(K * n, w), widen, out=by_row)

                s.sub_(s.amax(dim=0))
                own_scores = s.gather(0, own)
                s.exp_()
                sums = s.sum(dim=0, keepdim=True)
                terms = sums.log() - own_scores
                total += torch.where(labelled > 0, terms, 0.0).sum()
                s.mul_(labelled / sums)
                s.scatter_add_(0, own, labelled.neg())

                back = narrow[: K * n * w].view(K * n, w)
                torch.mm(by_row, cols, out=back)
                gradient[image] += torch.matmul(band.t(), back.view(K, n, w))
        ctx.gradient, ctx.align_corners = gradient, align_corners
        ctx.save_for_backward(given, classes)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, None, None, None]:
        gradient = ctx.gradient
        if torch.is_grad_enabled():  # the gradient itself is to be differentiated
            scores, classes = ctx.saved_tensors
            (gradient,) = torch.autograd.grad(
                _resized_first(scores, classes, ctx.align_corners), scores, create_graph=True
            )
        return gradient * grad, None, None, None


def _resized_first(scores: Tensor, classes: Tensor, align_corners: bool) -> Tensor:
    size = classes.shape[1:]
    full = F.interpolate(scores, size, mode='bilinear', align_corners=align_corners)
    return F.cross_entropy(full, classes, ignore_index=scores.shape[1], reduction='sum')
