"""MCIBI++ from the formulas of its released code: loops, nothing shared with the package."""

import math

import torch

from tests.reference import mdrl


def statistics(vector):
    """Mean and unbiased deviation over the C channels of a class's mean vector."""
    mean = sum(float(v) for v in vector) / len(vector)
    variance = sum((float(v) - mean) ** 2 for v in vector) / (len(vector) - 1)
    return mean, math.sqrt(variance)


def update(memory, features, labels, m, ignore_index=255):
    """[K, 2], [P, C], [P] -> memory after it."""
    memory = memory.double().clone()
    for c in range(len(memory)):
        pixels = features[mdrl.pixels_of(c, features, labels, ignore_index)].double()
        if len(pixels):
            found = torch.tensor(statistics(sum(pixels) / len(pixels)), dtype=torch.float64)
            memory[c] = (1 - m) * memory[c] + m * found
    return memory
