"""What every rank runs: each scenario splits one global batch over the ranks, returns numbers.

The batch has blocks with uneven labels: one block all ignored, one class in one block only, one
class of a single pixel, one class nowhere, one non-finite embedding.
"""

import math
from contextlib import contextmanager

import torch
import torch.distributed as dist
from mmseg.registry import MODELS

from mmseg_cmdl.models.memory import DistributionBank
from tests.distributed import mcibi_scenarios as mcibi
from tests.models.decode_heads import tiny_head

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

# Which blocks each rank has, step by step; a rank may have none at all.
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


def _blocks(seed, channels=8, num_classes=6, num=3):
    """Four blocks of (embeddings, labels) around the vectors of a bank [K, N, Z]."""
    g = torch.Generator().manual_seed(seed)
    bank = torch.randn(
        num_classes, num, channels, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    bank /= bank.norm(dim=-1, keepdim=True)
    blocks = []
    for size, classes in [(90, (0, 1, 3)), (30, ()), (17, (2,)), (103, (0, 3))]:
        if classes:
            labels = torch.tensor(classes)[torch.randint(len(classes), (size,), generator=g)]
            labels[torch.rand(size, generator=g) < 0.1] = 255
        else:
            labels = torch.full((size,), 255)
        centres = bank[labels.clamp(max=num_classes - 1), torch.randint(num, (size,), generator=g)]
        embeddings = centres + 0.7 * torch.randn(size, channels, generator=g, dtype=torch.float64)
        blocks.append((embeddings / embeddings.norm(dim=-1, keepdim=True), labels))
    blocks[3][1][50] = 4  # the only pixel of its class
    blocks[3][0][50] = bank[4, 1]
    return bank, blocks


def _share(blocks, which):
    if not which:
        return blocks[0][0][:0], blocks[0][1][:0]
    return tuple(torch.cat([blocks[i][part] for i in which]) for part in range(2))


def bank_steps(rank, world, dtype, **options):
    """Five updates: the bank after each, and the collectives of each."""
    initial, _ = _blocks(0)
    bank = DistributionBank(*initial.shape, momentum=0.9, **options).to(dtype)
    bank.distributions.copy_(initial)
    after, log, counts = [], [], []
    for step, split in enumerate(SPLITS[world]):
        _, blocks = _blocks(step)
        if step == 2:
            blocks[0][0][5] = math.nan
        embeddings, labels = _share(blocks, split[rank])
        with logged_collectives() as calls:
            counted = bank.update_(embeddings.to(dtype), labels)
        log.append(calls)
        after.append(bank.distributions.clone())
        counts.append(torch.stack([value.double() for value in counted]))
    return dict(bank=torch.stack(after), counts=torch.stack(counts), log=log)


def gumbel_steps(rank, world):
    """Random assignment, equal shares of the batch: four updates."""
    initial, _ = _blocks(0)
    bank = DistributionBank(
        *initial.shape, momentum=0.9, assignment='gumbel', update_pixels='all'
    ).double()
    bank.distributions.copy_(initial)
    after = []
    for step in range(4):
        _, blocks = _blocks(step)
        embeddings, labels = _share(blocks, (0, 1, 2, 3))
        part = slice(rank * 240 // world, (rank + 1) * 240 // world)
        torch.manual_seed(rank)  # the global generator has no say
        bank.update_(embeddings[part], labels[part])
        after.append(bank.distributions.clone())
    return dict(bank=torch.stack(after))


LOSSES = {
    'local_paper': dict(type='ClassLocalConsistencyLoss', formulation='paper'),
    'local_released': dict(type='ClassLocalConsistencyLoss', formulation='released', num_classes=5),
    'global_paper': dict(type='ClassGlobalConsistencyLoss', formulation='paper'),
    'global_released': dict(type='ClassGlobalConsistencyLoss', formulation='released'),
}


def losses(rank, world, images):
    """Value, and gradient of shared weights averaged over ranks, of each loss by itself.

    Args:
        images: How many of the four images each rank has, e.g. (3, 1).
    """
    x = tiny_head.features(batch=4)[3].permute(0, 2, 3, 1)
    labels = image_labels()
    start = sum(images[:rank])
    part = slice(start, start + images[rank])
    out = {}
    for name, config in LOSSES.items():
        torch.manual_seed(0)
        loss = MODELS.build(dict(config, loss_weight=0.5)).double()
        weight = torch.randn(10, 15, dtype=torch.float64).requires_grad_()
        similarity = (x[part] @ weight * 0.3).unflatten(-1, (5, 3))
        with logged_collectives() as log:
            value = loss(similarity, labels[part])
        grads = torch.autograd.grad(value, [weight, *loss.parameters()])
        if dist.is_initialized():
            for grad in grads:
                dist.all_reduce(grad)
        out[name] = dict(value=value.detach(), grads=[grad / world for grad in grads], log=log)
    return out


def image_labels(step=0):
    """Four images: the second all ignored, class 4 only in the last, class 2 nowhere."""
    labels = tiny_head.label_maps(step, batch=4, absent=(2, 4))
    labels[1] = 255
    labels[3, :9, :12] = 4
    return labels


def mcibi_bank_steps(rank, world, name):
    """Updates of FeatureBank, see mcibi_scenarios."""
    return mcibi.feature_bank_steps(
        [split[rank] for split in SPLITS[world]], logged_collectives, *mcibi.BANKS[name]
    )


UNEVEN_IMAGES = {1: (4,), 2: (3, 1), 4: (1, 1, 1, 1)}


def run_all(rank, world):
    """Every scenario in the same order on every rank: name -> numbers."""
    out = {}
    for dtype in (torch.float64, torch.float32):
        for pixels in ('correct', 'all'):
            out[f'bank_{pixels}_{str(dtype)[6:]}'] = bank_steps(
                rank, world, dtype, update_pixels=pixels
            )
    out['gumbel'] = gumbel_steps(rank, world)
    out['losses'] = losses(rank, world, UNEVEN_IMAGES[world])
    for name in mcibi.BANKS:
        out[name] = mcibi_bank_steps(rank, world, name)
    return out
