"""What every rank runs for CAR: one global batch split unevenly over the ranks.

Of four blocks of pixels the second is all ignored, class 2 is in the third only, class 4 is nowhere
and class 5 is a single pixel of the last; a rank may have no pixel at all.
"""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from mmseg_cmdl.models.losses import (
    InterClassCenterToCenterLoss,
    InterClassCenterToPixelLoss,
    IntraClassCenterToPixelLoss,
    class_centers,
)
from tests.distributed.scenarios import image_labels, logged_collectives
from tests.models.decode_heads import tiny_head
from tests.models.segmentors import tiny_segmentor

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


class Step(torch.nn.Module):
    """One iteration as a forward pass, for DDP."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, samples):
        losses = self.model.loss(images, samples)
        return tiny_head.objective(losses), losses


def train(rank, world, steps=3, **options):
    """CAREncoderDecoder under DDP: weights, the losses of CAR and the collectives of each step."""
    model = tiny_segmentor.build(tiny_segmentor.head(dropout_ratio=0.0), **options).double()
    model.backbone.mix[:3].requires_grad_(False)  # maps that the head doesn't read
    wrapped = Step(tiny_head.freeze_norms(model.train()))
    if dist.is_initialized():
        wrapped = DistributedDataParallel(
            wrapped, broadcast_buffers=False, find_unused_parameters=False
        )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    part = slice(rank * 4 // world, (rank + 1) * 4 // world)
    out = dict(losses=[], log=[])
    for step in range(steps):
        images = tiny_segmentor.images(step, batch=4)[part].double()
        samples = tiny_head.samples(image_labels(step)[part])
        optimizer.zero_grad()
        with logged_collectives() as log:
            total, losses = wrapped(images, samples)
            total.backward()
        optimizer.step()
        out['losses'].append(
            {key: value.detach() for key, value in losses.items() if key.startswith('car.')}
        )
        out['log'].append(log)
    out['weights'] = {key: value.detach().clone() for key, value in model.named_parameters()}
    return out


TRAININGS = {
    'paper': {},
    'released': dict(formulation='released'),
}


def run_all(rank, world):
    """Every scenario in the same order on every rank: name -> numbers."""
    out = {split: centers_and_losses(rank, world, split) for split in ('even', 'empty')}
    for name, options in TRAININGS.items():
        out[f'train_{name}'] = train(rank, world, **options)
    return out
