"""MCIBI straight from its equations: loops, float64, nothing shared with the package.

Equation numbers are those of the MCIBI paper. Symbols: B images, K classes, P pixels, C channels.
"""

import math

import torch

from tests.reference import mdrl


def momentum(iteration, num_iterations, start=0.9, power=0.9):
    """Eq. 7."""
    return (1 - iteration / num_iterations) ** power * (start - start / 100) + start / 100


def cosine(a, b):
    """Eq. 9 for one pixel; 0 where one of the two has no length."""
    lengths = a.norm() * b.norm()
    return (a @ b / lengths).item() if lengths > 0 else 0.0


def transform(pixels, row, strategy='cosine'):
    """Eq. 10: the pixels [M, C] of one class and its row [C] -> R' [C]."""
    mean = sum(pixels) / len(pixels)
    if strategy == 'mean':
        return mean
    weights = [max(0.0, 1 - cosine(pixel, row)) for pixel in pixels]
    if sum(weights) < 1e-12 * len(pixels):  # all parallel: 0 / 0 in the paper
        return mean
    return sum(w / sum(weights) * pixel for w, pixel in zip(weights, pixels))


def update(memory, filled, features, labels, m, strategy='cosine', ignore_index=255):
    """Eq. 6 and 8: [K, C], [K], [P, C], [P] -> memory and filled after it."""
    memory, filled = memory.double().clone(), filled.clone()
    for c in range(len(memory)):
        pixels = [
            feature.double()
            for feature, label in zip(features, labels)
            if int(label) == c and c != ignore_index and bool(feature.isfinite().all())
        ]
        if not pixels:
            continue
        if filled[c]:
            memory[c] = (1 - m) * memory[c] + m * transform(pixels, memory[c], strategy)
        else:
            memory[c] = sum(pixels) / len(pixels)
        filled[c] = True
    return memory, filled


def resize(features, size, align_corners=False):
    """Bilinear, pixel by pixel: [B, C, h, w] -> [B, C, H, W]."""
    (h, w), (height, width) = features.shape[2:], size

    def taps(i, full, cells):
        if align_corners:
            x = i * (cells - 1) / (full - 1) if full > 1 else 0.0
        else:
            x = max(0.0, (i + 0.5) * cells / full - 0.5)
        first = min(math.floor(x), cells - 1)
        return (first, 1 - (x - first)), (min(first + 1, cells - 1), x - first)

    out = features.new_zeros(*features.shape[:2], height, width)
    for y in range(height):
        for x in range(width):
            for i, wy in taps(y, height, h):
                for j, wx in taps(x, width, w):
                    if wy * wx > 0:  # no share of a bad cell is no harm
                        out[:, :, y, x] += wy * wx * features[:, :, i, j]
    return out


def gather(weights, memory):
    """Eq. 12: [B, K, h, w], [K, C] -> [B, C, h, w]."""
    batch, num_classes, h, w = weights.shape
    out = weights.new_zeros(batch, memory.shape[1], h, w)
    for b in range(batch):
        for y in range(h):
            for x in range(w):
                out[b, :, y, x] = sum(weights[b, k, y, x] * memory[k] for k in range(num_classes))
    return out


def aggregate(head, pixels, coarse_logits, context=None, hard=False):
    """Eq. 2-4 and 12-14 with a head's own convs: -> what the final classifier sees."""
    if hard:
        weights = torch.zeros_like(coarse_logits)
        weights.scatter_(1, coarse_logits.argmax(1, keepdim=True), 1)
    else:
        weights = coarse_logits.exp() / coarse_logits.exp().sum(1, keepdim=True)
    related = mdrl.relate(head.relation, pixels, gather(weights, head.bank.features))
    fused = head.fuse_pixels(torch.cat([pixels, related], 1))
    if context is not None:
        within = mdrl.relate(head.context_relation, pixels, context)
        fused = head.fuse_context(torch.cat([within, fused], 1))
    return fused


def memory_loss(logits, filled):
    """Eq. 17 over the classes in memory: [K, K], [K] -> scalar."""
    rows = [logits[k].logsumexp(0) - logits[k, k] for k in range(len(filled)) if filled[k]]
    return sum(rows) / len(rows) if rows else logits.sum() * 0
