"""A small head and batches for it, shared by the tests of decode heads and of several ranks."""

import torch
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

CHANNELS = (4, 6, 8, 10)  # of the four feature maps of a backbone
SIZES = ((20, 24), (10, 12), (5, 6), (5, 6))
LABEL_SIZE = (19, 23)  # no multiple of the feature size
NUM_CLASSES = 5
BANK = dict(type='DistributionBank', num_distributions=3, momentum=0.9)


def released(local=0.3, contrast=0.7):
    return [
        dict(type='ClassLocalConsistencyLoss', formulation='released', loss_weight=local),
        dict(type='ClassGlobalConsistencyLoss', formulation='released', loss_weight=contrast),
    ]


def paper(local=0.3, contrast=0.7):
    return [
        dict(type='ClassLocalConsistencyLoss', formulation='paper', loss_weight=local),
        dict(type='ClassGlobalConsistencyLoss', formulation='paper', loss_weight=contrast),
    ]


def build(dtype=torch.float64, seed=0, **options):
    """MDRLHead on the last of four maps, in training mode; no dropout, so steps can be repeated."""
    return make('MDRLHead', dtype, seed, **{'bank': BANK, 'loss_consistency': paper(), **options})


def build_mcibi(dtype=torch.float64, seed=0, **options):
    """MCIBIHead on the last of four maps, as :func:`build` makes MDRLHead."""
    return make('MCIBIHead', dtype, seed, **options)


def fill(head, seed=0, empty=()):
    """MCIBIHead whose memory holds something for all classes but the empty ones."""
    g = torch.Generator().manual_seed(seed)
    bank = head.bank
    bank.features.copy_(torch.randn(bank.features.shape, generator=g, dtype=torch.float64))
    bank.filled.fill_(True)
    for c in empty:
        bank.features[c], bank.filled[c] = 0, False
    return head


def make(kind, dtype=torch.float64, seed=0, **options):
    """Any head on the last of four maps, in training mode."""
    torch.manual_seed(seed)
    config = dict(
        type=kind,
        in_channels=CHANNELS[-1],
        in_index=3,
        channels=8,
        num_classes=NUM_CLASSES,
        dropout_ratio=0.0,
        norm_cfg=dict(type='BN'),
        align_corners=False,
    )
    config.update(options)
    return MODELS.build(config).to(dtype).train()


def freeze_norms(head):
    """Norms with their running values: no sum over a rank's own images remains."""
    for module in head.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    return head


def features(seed=0, batch=2, dtype=torch.float64, sizes=SIZES, channels=CHANNELS):
    g = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, c, *size, generator=g, dtype=torch.float64).to(dtype)
        for c, size in zip(channels, sizes)
    ]


def label_maps(
    seed=0, batch=2, size=LABEL_SIZE, num_classes=NUM_CLASSES, absent=(2,), ignored=0.15
):
    """[B, H, W] in blocks larger than a pixel at feature size, with ignored pixels."""
    g = torch.Generator().manual_seed(1000 + seed)
    present = torch.tensor([c for c in range(num_classes) if c not in absent])
    blocks = present[torch.randint(len(present), (batch, 4, 5), generator=g)]
    rows = torch.arange(size[0]) * 4 // size[0]
    cols = torch.arange(size[1]) * 5 // size[1]
    labels = blocks[:, rows][:, :, cols].clone()
    labels[torch.rand(labels.shape, generator=g) < ignored] = 255
    return labels


def samples(labels, **metainfo):
    """One SegDataSample for each label map [H, W]."""
    out = []
    for index, label in enumerate(labels):
        sample = SegDataSample(
            gt_sem_seg=PixelData(data=label[None]),
            metainfo={
                'img_path': f'image_{index}.png',
                'img_shape': tuple(label.shape),
                **metainfo,
            },
        )
        out.append(sample)
    return out


def objective(losses):
    """What mmengine differentiates: the sum of all entries whose key contains 'loss'."""
    return sum(sum(v) if isinstance(v, list) else v for k, v in losses.items() if 'loss' in k)


def step(head, seed=0, batch=2, **options):
    """(losses, gradient of every parameter by name) of one training iteration."""
    inputs = features(seed, batch, next(head.parameters()).dtype)
    losses = head.loss(inputs, samples(label_maps(seed, batch, **options)), None)
    head.zero_grad()
    objective(losses).backward()
    grads = {name: parameter.grad for name, parameter in head.named_parameters()}
    return losses, grads


def metas(batch=2, size=LABEL_SIZE):
    return [dict(img_shape=size, pad_shape=size, ori_shape=size)] * batch
