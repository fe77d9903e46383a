"""ProtoSeg straight from the formulas of its released code, float64, nothing shared."""

import torch


def contrast(similarity, targets, temperature=1.0):
    """Cross entropy over all prototypes: [P, K, N], [P] with -1 for none -> scalar."""
    values = []
    for row, target in zip(similarity.flatten(1), targets.tolist()):
        if target >= 0:
            scores = row / temperature
            values.append(scores.exp().sum().log() - scores[target])
    return sum(values) / len(values)


def distance(similarity, targets):
    """Mean of (1 - cosine)^2 with the target prototype."""
    values = [
        (1 - row[target]) ** 2
        for row, target in zip(similarity.flatten(1), targets.tolist())
        if target >= 0
    ]
    return sum(values) / len(values)


def layer_norm(row, weight, bias, eps=1e-5):
    mean = row.mean()
    variance = ((row - mean) ** 2).mean()
    return (row - mean) / torch.sqrt(variance + eps) * weight + bias
