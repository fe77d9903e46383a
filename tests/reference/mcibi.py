"""MCIBI straight from its equations: loops, float64, nothing shared with the package.

Equation numbers are those of the MCIBI paper. Symbols: B images, K classes, P pixels, C channels.
"""

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
        pixels = features[mdrl.pixels_of(c, features, labels, ignore_index)].double()
        if not len(pixels):
            continue
        if filled[c]:
            memory[c] = (1 - m) * memory[c] + m * transform(pixels, memory[c], strategy)
        else:
            memory[c] = sum(pixels) / len(pixels)
        filled[c] = True
    return memory, filled


def memory_loss(logits, filled):
    """Eq. 17 over the classes in memory: [K, K], [K] -> scalar."""
    rows = [logits[k].logsumexp(0) - logits[k, k] for k in range(len(filled)) if filled[k]]
    return sum(rows) / len(rows) if rows else logits.sum() * 0
