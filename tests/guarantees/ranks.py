"""Training in 1 to 4 gloo processes: ``python -m tests.guarantees.ranks FOLDER SCENARIO ...``.

One interpreter imports everything once and forks the ranks before it computes anything. Every rank
writes FOLDER/<world size>_<rank>.pt, or its traceback.
"""

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmseg.registry import MODELS
from torch import nn

from tests.distributed.launch import fork_ranks
from tests.distributed.scenarios import logged_collectives
from tests.guarantees import cases

STEPS = 20
RELOADED = 7  # the step before which some scenarios load a checkpoint
IMAGES = 6
# How many of the six images each rank has; the second image has no labelled pixel, so with four
# processes rank 1 has none, and the only pixels of class 4 are in the last image.
SHARES = {1: (6,), 2: (4, 2), 3: (1, 3, 2), 4: (1, 1, 3, 1)}
SIZE = (16, 20)


@MODELS.register_module(force=True)
class GuaranteesShareOfCrossEntropy(nn.Module):
    """This rank's share of the mean cross entropy over the global batch, times the world size.

    MMSegmentation's own is the mean over a rank's images, so its average over ranks is not that of
    the batch where batches differ in size. That is the host's, and not what is looked at here.
    """

    loss_name = 'loss_ce'

    def __init__(self, loss_weight=1.0):
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, logits, labels, weight=None, ignore_index=255, **kwargs):
        total = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction='sum')
        world = dist.get_world_size() if dist.is_initialized() else 1
        return self.loss_weight * world * total / (IMAGES * SIZE[0] * SIZE[1])


def build(name, seed, dtype, norm):
    share = dict(type='GuaranteesShareOfCrossEntropy')
    options = dict(loss_decode=share)
    case = cases.CASES[name]['head']
    head = case['type']
    if isinstance(case.get('in_channels'), list):
        # of images this small a key_stride of 8 leaves two keys, and their norm enlarges rounding
        options['key_stride'] = 4
    if head in ('MDRLHead', 'MCIBIHead', 'MCIBIPlusPlusHead'):
        options['loss_coarse'] = dict(share, loss_weight=0.4)
    if head == 'MCIBIPlusPlusHead':
        options['loss_context'] = share
    config = cases.model_config(name, norm=norm, head_options=options, image_size=SIZE)
    config['auxiliary_head']['loss_decode'] = dict(share, loss_weight=0.4)
    config['data_preprocessor'] = dict(type='mmengine.BaseDataPreprocessor')
    torch.manual_seed(seed)
    return cases.from_config(config).to(dtype).train()


def labels_of(step):
    labels = cases.label_maps(step, IMAGES, SIZE)
    labels[labels == 4] = 0
    labels[1] = 255
    labels[5, :6, :7] = 4
    labels[3, 1:] = 255  # hardly anything
    return labels


def predict_alone(model, which, rank):
    """Collectives of a prediction on one rank; the others don't take part, so one would hang."""
    images, _ = cases.batch(dtype=next(model.parameters()).dtype, image_size=SIZE)
    model.eval()
    with logged_collectives() as log, torch.no_grad():
        if rank == which:
            model(images.to(next(model.parameters()).device))
    model.train()
    return list(log)


def load_another_bank(model, rank):
    """A state whose memory is another on each rank, as before the bank's first use."""
    state = model.state_dict()
    name = f'decode_head.bank.{model.decode_head.bank.memory_name}'
    model.load_state_dict({**state, name: state[name].roll(rank, 0)})


def train(
    name, rank, world, dtype=torch.float64, broadcast_buffers=False, steps=STEPS, device='cpu',
    norm='GN', reload=False,
):  # fmt: skip
    """Losses, gradients, bank, collectives of each step; every rank starts from another seed."""
    model = build(name, rank, dtype, norm).to(device)
    alone = predict_alone(model, world - 1, rank)
    chosen = []
    bank = getattr(model.decode_head, 'bank', None)
    if hasattr(bank, '_assign'):
        assign = bank._assign
        bank._assign = lambda *args, **kw: chosen.append(assign(*args, **kw)) or chosen[-1]
    wrapped = model
    if dist.is_initialized():
        wrapped = MMDistributedDataParallel(
            model, broadcast_buffers=broadcast_buffers, find_unused_parameters=False
        )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    optim_wrapper = OptimWrapper(optimizer)
    torch.manual_seed(1000 + rank)
    begin = sum(SHARES[world][:rank])
    part = slice(begin, begin + SHARES[world][rank])
    out = dict(losses=[], grads=[], bank=[], log=[])
    optim_wrapper.zero_grad = lambda **kwargs: None  # gradients are looked at after the step
    for step in range(steps):
        if reload and step == RELOADED:
            load_another_bank(model, rank)
        images, samples = cases.batch(step, dtype=dtype, labels=labels_of(step))
        optimizer.zero_grad()
        with logged_collectives() as log:
            values = wrapped.train_step(
                dict(inputs=images[part], data_samples=samples[part]), optim_wrapper
            )
        out['log'].append(list(log))
        out['losses'].append({key: torch.as_tensor(value).detach().double().cpu()
                              for key, value in values.items()})  # fmt: skip
        if step in (0, 9, steps - 1):
            out['grads'].append({key: p.grad.cpu().clone() for key, p in model.named_parameters()})
        out['bank'].append({key: value.cpu().clone() for key, value in cases.memory(model).items()})
    out['log_of_predictions'] = alone + predict_alone(model, 0, rank)
    out['weights'] = {key: p.detach().cpu() for key, p in model.named_parameters()}
    out['chosen'] = [x.cpu() for x in chosen]
    return out


SCENARIOS = {
    **{name: dict(name=name) for name in cases.CASES},
    **{f'{name}_float32': dict(name=name, dtype=torch.float32) for name in cases.METHODS},
    **{f'{name}_broadcast': dict(name=name, broadcast_buffers=True) for name in cases.METHODS},
    **{f'{name}_reload': dict(name=name, reload=True) for name in ('mdrl', 'mcibi', 'mcibipp')},
}
# All ranks on one device: NCCL refuses two of them there, gloo doesn't.
ON_CUDA = {
    f'{name}_{norm}_cuda': dict(name=name, norm=norm, device='cuda')
    for norm in ('GN', 'SyncBN') for name in cases.METHODS if torch.cuda.is_available()
}  # fmt: skip
SCENARIOS.update(ON_CUDA)


def main(folder, names):
    def run(rank, world):
        return {name: train(rank=rank, world=world, **SCENARIOS[name]) for name in names}

    return fork_ranks(run, folder, SHARES, timedelta(seconds=600))


if __name__ == '__main__':
    from tests.guarantees import ranks

    sys.exit(ranks.main(Path(sys.argv[1]), sys.argv[2:]))
