"""Segmentors around a decode head, small enough to train in a blink, for the tests of CAR."""

import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseModule
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from tests.models.decode_heads import tiny_head

IMAGE = (40, 48)  # 2x, 4x, 8x, 8x the maps of tiny_head
K = tiny_head.NUM_CLASSES


@MODELS.register_module()
class FourMaps(BaseModule):
    """Four maps of random patterns from an image, at tiny_head's sizes; nothing to train."""

    def __init__(self, channels=tiny_head.CHANNELS, sizes=tiny_head.SIZES):
        super().__init__()
        self.sizes = sizes
        self.mix = torch.nn.ModuleList(torch.nn.Conv2d(3, c, 3, padding=1) for c in channels)

    def forward(self, x):
        return [
            torch.nn.functional.adaptive_avg_pool2d(conv(x), size)
            for conv, size in zip(self.mix, self.sizes)
        ]


def head(kind='FCNHead', **options):
    """Config of a decode head on the last map."""
    config = dict(
        type=kind,
        in_channels=tiny_head.CHANNELS[-1],
        in_index=3,
        channels=8,
        num_classes=K,
        dropout_ratio=0.1,
        norm_cfg=dict(type='BN'),
        align_corners=False,
    )
    config.update(options)
    return config


def build(decode_head, kind='CAREncoderDecoder', seed=0, backbone=None, **options):
    """The segmentor with initialised weights."""
    init_default_scope('mmseg')
    torch.manual_seed(seed)
    model = MODELS.build(
        dict(
            type=kind,
            backbone=backbone or dict(type='FourMaps'),
            decode_head=decode_head,
            data_preprocessor=dict(type='SegDataPreProcessor', size=IMAGE),
            train_cfg=ConfigDict(),
            test_cfg=ConfigDict(mode='whole'),
            **options,
        )
    )
    model.init_weights()
    return model


def images(seed=0, batch=2, size=IMAGE):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, *size, generator=g)


def samples(seed=0, batch=2, **options):
    return tiny_head.samples(
        tiny_head.label_maps(seed, batch, IMAGE, **options),
        ori_shape=IMAGE,
        pad_shape=IMAGE,
        seg_map_path='labels.png',
    )


def train_step(model, seed=0, lr=0.05, labelled=None):
    """One step of SGD on random images, with `labelled` as their samples if given; the losses."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    dtype = next(model.parameters()).dtype
    losses = model.loss(images(seed).to(dtype), labelled or samples(seed))
    total, _ = model.parse_losses(losses)
    optimizer.zero_grad()
    total.backward()
    optimizer.step()
    return losses


@torch.no_grad()
def logits(model, seed=9):
    """What the segmentor predicts for random images."""
    model.eval()
    torch.manual_seed(seed)  # LightHamHead draws its bases at every pass
    dtype = next(model.parameters()).dtype
    return model.encode_decode(images(seed).to(dtype), tiny_head.metas(size=IMAGE))


def label_maps():
    """[B, H, W], those of :func:`samples`."""
    return torch.stack([sample.gt_sem_seg.data[0] for sample in samples()])


def watched(model, run):
    """Inputs of the linear convs [B, C, h, w], and of conv_seg, while `run` is called."""
    seen, handles = {}, []
    modules = {str(i): linear for i, linear in enumerate(model.car.linears)}
    modules['conv_seg'] = model.regularized_head.conv_seg
    for key, module in modules.items():
        handles.append(
            module.register_forward_hook(lambda m, x, y, key=key: seen.__setitem__(key, x[0]))
        )
    result = run()
    for handle in handles:
        handle.remove()
    return result, seen


def assert_folds_into(plain, model, atol=1e-10):
    """The state of a model with CAR, folded, predicts the same in the plain one."""
    plain.load_state_dict(model.folded_state_dict())  # strictly: the same keys and shapes
    torch.testing.assert_close(logits(plain), logits(model), rtol=0, atol=atol)
