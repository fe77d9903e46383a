"""DGCW straight from its equations: whole [C, hw, hw] tensors or loops, autograd, nothing shared.

Equation numbers are those of the DGCW paper. The paper says nothing of pairs that are equal in all
channels; both forms divide by 1e-12 where the sum of squared differences is smaller.
"""

import torch

EQUAL = 1e-12


def normalise(distances, norm):
    """Eq. 3 for [..., C]: f over channels."""
    if norm == 'softmax':
        exponents = (distances - distances.max(-1, keepdim=True).values).exp()
        return exponents / exponents.sum(-1, keepdim=True)
    if norm == 'tanh':
        return distances.tanh()
    total = distances.sum(-1, keepdim=True)
    return distances / torch.where(total < EQUAL, torch.full_like(total, EQUAL), total)


def conv(layer, rows):
    """1x1 conv on the last dimension."""
    out = rows @ layer.weight[:, :, 0, 0].t()
    return out if layer.bias is None else out + layer.bias


def g(layer, rows):
    """Two convs, the first followed by ReLU."""
    return conv(layer.g2, conv(layer.g1, rows).clamp(min=0))


def update(layer, x):
    """Eq. 1-5: F [B, C, h, w] to the updated map, all pairs at once and g applied to each pair."""
    B, C, h, w = x.shape
    pixels = x.reshape(B, C, h * w).transpose(1, 2)
    Q, K, V = (conv(c, pixels) for c in (layer.query, layer.key, layer.value))
    M = (Q[:, :, None] - K[:, None]) ** 2
    R = g(layer, normalise(M, layer.norm) * V[:, :, None])
    return (pixels + R.sum(2)).transpose(1, 2).reshape(B, C, h, w)


def update_by_loops(layer, x):
    """The same, pair by pair."""
    out = x.clone()
    for b, image in enumerate(x):
        pixels = image.flatten(1).t()
        Q, K, V = (conv(c, pixels) for c in (layer.query, layer.key, layer.value))
        for i in range(len(pixels)):
            updated = pixels[i]
            for j in range(len(pixels)):
                M = (Q[i] - K[j]) ** 2
                updated = updated + g(layer, normalise(M, layer.norm) * V[i])
            out[b, :, i // x.shape[3], i % x.shape[3]] = updated
    return out
