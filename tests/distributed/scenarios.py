"""What every rank runs: each scenario splits one global batch over the ranks, returns numbers.

The batch has four images with uneven labels: one is all ignored, one class is in one image only and
not at first, one has a single pixel, one is nowhere; in one step a cell isn't finite.
"""

import math
from contextlib import contextmanager

import torch
import torch.distributed as dist
from mmseg.registry import MODELS

from mmseg_cmdl.models.losses import class_centers

COLLECTIVES = (
    'all_reduce',
    'broadcast',
    'all_gather',
    'all_gather_into_tensor',
    'reduce',
    'reduce_scatter',
    'reduce_scatter_tensor',
    'all_gather_object',
    'gather',
    'scatter',
    'broadcast_object_list',
    'all_to_all',
    'all_to_all_single',
    'barrier',
)

# Which images each rank has, step by step; a rank may have none at all.
SPLITS = {
    1: [[(0, 1, 2, 3)]] * 5,
    2: [
        [(0, 1), (2, 3)],
        [(1,), (0, 2, 3)],
        [(0, 2, 3), (1,)],
        [(3,), (0, 1, 2)],
        [(), (0, 1, 2, 3)],
    ],
    4: [[((rank + step) % 4,) for rank in range(4)] for step in range(5)],
}


@contextmanager
def logged_collectives():
    """Name and size of every collective asked for from Python while inside."""
    log, originals = [], {name: getattr(dist, name) for name in COLLECTIVES}

    def logging(name):
        def call(*args, **kwargs):
            tensor = args[0] if args else None
            log.append((name, tensor.numel() if isinstance(tensor, torch.Tensor) else -1))
            return originals[name](*args, **kwargs)

        return call

    for name in COLLECTIVES:
        setattr(dist, name, logging(name))
    try:
        yield log
    finally:
        for name, function in originals.items():
            setattr(dist, name, function)


K, C = 6, 8
DISTRIBUTIONS = dict(type='DistributionBank', num_distributions=3, channels=C, momentum=0.9)
# config, and whether it takes maps and labels at label size
BANKS = {
    'distributions_correct': (dict(DISTRIBUTIONS, update_pixels='correct'), False),
    'distributions_all': (dict(DISTRIBUTIONS, update_pixels='all'), False),
    **{
        f'{name}_{size}': (config, size == 'label')
        for name, config in {
            'features_cosine': dict(type='FeatureBank', channels=C),
            'features_mean': dict(type='FeatureBank', channels=C, strategy='mean'),
            'gaussian': dict(type='GaussianBank'),
        }.items()
        for size in ('label', 'feature')
    },
}
DTYPES = ('float64', 'float32')
CAR = {
    f'{kind}_{formulation}': dict(type=kind, formulation=formulation)
    for kind in (
        'IntraClassCenterToPixelLoss', 'InterClassCenterToCenterLoss', 'InterClassCenterToPixelLoss'
    )
    for formulation in ('paper', 'released')
}  # fmt: skip


def batch(step):
    """Features [4, C, 5, 6] and label maps [4, 13, 17] of all ranks."""
    g = torch.Generator().manual_seed(step)
    labels = torch.tensor([0, 1, 3])[torch.randint(3, (4, 13, 17), generator=g)]
    labels[torch.rand(labels.shape, generator=g) < 0.1] = 255
    labels[1] = 255
    labels[0, 3, 3] = 4
    if step >= 1:
        labels[3, :6, :9] = 2
    features = torch.randn(4, C, 5, 6, generator=g, dtype=torch.float64)
    # near something of its own for each class, so that distributions of one class are the nearest
    around = torch.randn(K, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features += around[labels[:, ::3, ::3].clamp(max=K - 1)].permute(0, 3, 1, 2)
    if step == 2:
        features[3, 0, 1, 1] = math.nan
    return features, labels


def as_pixels(features, labels):
    """Lists of both, at feature size."""
    return features.permute(0, 2, 3, 1).flatten(0, 2), labels[:, ::3, ::3].flatten()


def bank_steps(rank, world, name, dtype):
    """Five updates: the bank's state after each, the counts, and the collectives of each."""
    config, at_label_size = BANKS[name]
    torch.manual_seed(0)
    bank = MODELS.build(dict(config, num_classes=K)).to(getattr(torch, dtype))
    momentum = (0.3,) if config['type'] == 'FeatureBank' else ()
    out = dict(state=[], counts=[], log=[])
    for step, split in enumerate(SPLITS[world]):
        features, labels = (x[list(split[rank])] for x in batch(step))
        if config['type'] == 'DistributionBank':
            features = torch.nn.functional.normalize(features, dim=1)
        given = (features, labels) if at_label_size else as_pixels(features, labels)
        with logged_collectives() as calls:
            counted = bank.update_(given[0].to(getattr(torch, dtype)), given[1], *momentum)
        out['log'].append(calls)
        out['state'].append({key: value.clone() for key, value in bank.named_buffers()})
        out['counts'].append(torch.stack([value.double() for value in counted]))
    return out


def car_losses(rank, world):
    """Centres, and each loss on them: value, averaged gradient of shared weights, collectives.

    In the first split that has a rank without a pixel, where there is one.
    """
    which = next((split[rank] for split in SPLITS[world] if () in split), SPLITS[world][0][rank])
    pixels, labels = as_pixels(*(x[list(which)] for x in batch(1)))
    weight = torch.randn(C, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight.requires_grad_()

    def centers(features, *_):
        return (class_centers(features, labels, K)[0] * torch.arange(7.0)).sum()

    out = {}
    for name in ('centers', *CAR):
        loss = centers if name == 'centers' else MODELS.build(CAR[name])
        features = pixels @ weight
        with logged_collectives() as log:
            value = loss(features, labels, *class_centers(features, labels, K))
            (grad,) = torch.autograd.grad(value, weight)
        if dist.is_initialized():
            dist.all_reduce(grad)
        out[name] = dict(value=value.detach(), grad=grad / world, log=log)
    return out


def run_all(rank, world):
    """Every scenario in the same order on every rank: name -> numbers."""
    out = {
        name: {dtype: bank_steps(rank, world, name, dtype) for dtype in DTYPES} for name in BANKS
    }
    return dict(out, car=car_losses(rank, world))
