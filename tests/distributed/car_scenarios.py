"""What every rank runs for CAR: one global batch split unevenly over the ranks.

Of four blocks of pixels the second is all ignored, class 2 is in the third only, class 4 is nowhere
and class 5 is a single pixel of the last; a rank may have no pixel at all.
"""

import torch

from mmseg_cmdl.models.losses import (
    InterClassCenterToCenterLoss,
    InterClassCenterToPixelLoss,
    IntraClassCenterToPixelLoss,
    class_centers,
)
from tests.distributed.scenarios import logged_collectives

K = 6
SPLITS = {
    1: {'even': [(0, 1, 2, 3)], 'empty': [(0, 1, 2, 3)]},
    2: {'even': [(0, 1), (2, 3)], 'empty': [(), (0, 1, 2, 3)]},
    4: {'even': [(0,), (1,), (2,), (3,)], 'empty': [(1,), (), (0, 3), (2,)]},
}
LOSSES = {
    f'{name}_{formulation}': (cls, formulation)
    for name, cls in dict(
        intra=IntraClassCenterToPixelLoss,
        c2c=InterClassCenterToCenterLoss,
        c2p=InterClassCenterToPixelLoss,
    ).items()
    for formulation in ('paper', 'released')
}


def blocks():
    """Four blocks of (features [p, C], labels [p])."""
    g = torch.Generator().manual_seed(0)
    around = torch.randn(K, 7, generator=g, dtype=torch.float64)
    out = []
    for size, classes in [(40, (0, 1, 3)), (15, ()), (9, (2,)), (50, (0, 3))]:
        labels = torch.full((size,), 255)
        if classes:
            labels = torch.tensor(classes)[torch.randint(len(classes), (size,), generator=g)]
            labels[torch.rand(size, generator=g) < 0.1] = 255
        noise = torch.randn(size, 7, generator=g, dtype=torch.float64)
        out.append((around[labels.clamp(max=K - 1)] + noise, labels))
    out[3][1][20] = 5
    return out


def _share(which):
    every = blocks()
    if not which:
        return every[0][0][:0], every[0][1][:0]
    return tuple(torch.cat([every[i][part] for i in which]) for part in range(2))


def centers_and_losses(rank, world, split):
    """Centres, and value, this rank's feature gradient and collectives of each loss."""
    features, labels = _share(SPLITS[world][split][rank])
    features.requires_grad_()
    with logged_collectives() as log:
        centers, counts = class_centers(features, labels, K)
    weights = torch.randn(
        centers.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    (grad,) = torch.autograd.grad((centers * weights).sum(), features)
    out = dict(centers=dict(value=centers.detach(), counts=counts, grad=grad / world, log=log))
    for name, (cls, formulation) in LOSSES.items():
        loss = cls(formulation=formulation)
        with logged_collectives() as log:
            value = loss(features, labels, *class_centers(features, labels, K))
            (grad,) = torch.autograd.grad(value, features)
        out[name] = dict(value=value.detach(), grad=grad / world, log=log)
    return out


def run_all(rank, world):
    """Every scenario in the same order on every rank: name -> numbers."""
    return {split: centers_and_losses(rank, world, split) for split in ('even', 'empty')}
