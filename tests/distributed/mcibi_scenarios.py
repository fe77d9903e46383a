"""MCIBI's part of the scenarios: what every rank runs of one global batch, and what comes of it."""

import math

import torch

from mmseg_cmdl.models.memory import FeatureBank


def _bank_batch(step):
    """Four images [4, C, h, w] and their labels at label size.

    Class 2 is first seen at step 1, on the last image alone; class 4 has a single pixel, on image
    0; class 5 is nowhere; image 1 is all ignored; at step 2 a cell of image 3 isn't finite.
    """
    g = torch.Generator().manual_seed(step)
    features = torch.randn(4, 8, 5, 6, generator=g, dtype=torch.float64)
    features += torch.arange(8)[:, None, None] * 0.2
    labels = torch.tensor([0, 1, 3])[torch.randint(3, (4, 13, 17), generator=g)]
    labels[torch.rand(labels.shape, generator=g) < 0.1] = 255
    labels[1] = 255
    labels[0, 3, 4] = 4
    if step >= 1:
        labels[3, :6, :9] = 2
    if step == 2:
        features[3, 0, 1, 1] = math.nan
    return features, labels


def feature_bank_steps(shares, logged_collectives, dtype, strategy, at_label_size):
    """Five updates: memory, filled classes, counts and collectives of each.

    Args:
        shares: For each step, the images of this rank; there may be none.
    """
    bank = FeatureBank(6, 8, strategy=strategy).to(dtype)
    out = dict(bank=[], filled=[], counts=[], log=[])
    for step, images in enumerate(shares):
        features, labels = (x[list(images)] for x in _bank_batch(step))
        features = features.to(dtype)
        with logged_collectives() as calls:
            if at_label_size:
                counted = bank.update_(features, labels, 0.3)
            else:
                counted = bank.update_(
                    features.permute(0, 2, 3, 1).flatten(0, 2), labels[:, ::3, ::3].flatten(), 0.3
                )
        out['log'].append(calls)
        out['bank'].append(bank.features.clone())
        out['filled'].append(bank.filled.clone())
        out['counts'].append(torch.stack([value.double() for value in counted]))
    return {key: value if key == 'log' else torch.stack(value) for key, value in out.items()}


BANKS = {
    f'features_{strategy}_{size}_{str(dtype)[6:]}': (dtype, strategy, size == 'label')
    for strategy in ('cosine', 'mean')
    for size in ('label', 'feature')
    for dtype in (torch.float64, torch.float32)
}
