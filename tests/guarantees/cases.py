"""Every head, segmentor and way of computing of this package, once, small: what promises hold for.

`CASES` maps a name to options of :func:`model_config`. A new head is one line here.
"""

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS
from torch import nn

import mmseg_cmdl  # noqa: F401
from tests.models.decode_heads import tiny_head
from tests.models.decode_heads.tiny_head import CHANNELS, objective

NUM_CLASSES = 5
SIZE = (32, 40)

BANK = dict(type='DistributionBank', num_distributions=3, momentum=0.9)
LESS_CROSS_ENTROPY = dict(type='CrossEntropyLoss', loss_weight=0.4)
PAPER = [
    dict(type='ClassLocalConsistencyLoss', formulation='paper', loss_weight=0.1),
    dict(type='ClassGlobalConsistencyLoss', formulation='paper', loss_weight=0.1),
]
MDRL = dict(type='MDRLHead', bank=BANK)
MCIBI = dict(type='MCIBIHead')
MCIBIPP = dict(type='MCIBIPlusPlusHead')
PROTOSEG = dict(type='ProtoSegHead', bank=BANK)
DGCW = dict(type='DGCWHead')
PSP = dict(type='PSPHead', pool_scales=(1, 2, 3))
ASPP = dict(type='ASPPHead', dilations=(1, 2, 3))
CC = dict(type='CCHead', recurrence=2)
FCN = dict(type='FCNHead', num_convs=1, concat_input=False)
CAA = dict(type='CAAHead', attention_channels=8, attention=dict(query_channels=4))
CP = dict(type='CPHead', prior_channels=6, kernel_size=3)

CASES = {
    'mdrl': dict(head=MDRL),
    'mdrl_psp': dict(head=dict(MDRL, context=PSP)),
    'mdrl_aspp': dict(head=dict(MDRL, context=ASPP)),
    'mdrl_cc': dict(head=dict(MDRL, context=CC)),
    'mdrl_paper': dict(head=dict(MDRL, loss_consistency=PAPER)),
    'mdrl_pixel_gumbel': dict(
        head=dict(
            MDRL, embedding='pixel', fusion='add',
            bank=dict(BANK, assignment='gumbel', update_pixels='all'),
        )
    ),
    # on a decoder of several maps, at its size, with the strides that it has by default there
    'mdrl_segformer': dict(
        head=dict(
            MDRL, context=dict(type='SegformerHead'), in_channels=[*CHANNELS],
            in_index=[0, 1, 2, 3], bank=dict(BANK, update_pixels='all'),
        )
    ),
    'mcibi': dict(head=MCIBI),
    'mcibi_uper': dict(
        head=dict(
            MCIBI, context=dict(type='UPerHead', pool_scales=(2, 3)), in_channels=[*CHANNELS],
            in_index=[0, 1, 2, 3],
        )
    ),
    'mcibi_psp': dict(head=dict(MCIBI, context=PSP, hard_aggregate=True)),
    'mcibi_aspp': dict(head=dict(MCIBI, context=ASPP, update_size='feature')),
    'mcibi_cc': dict(head=dict(MCIBI, context=CC)),
    'mcibipp': dict(head=MCIBIPP),
    'mcibipp_psp': dict(head=dict(MCIBIPP, context=PSP, num_passes=2)),
    'mcibipp_aspp': dict(
        head=dict(MCIBIPP, context=ASPP, relate_context=False, downsample_before_sa=True)
    ),
    'protoseg': dict(head=PROTOSEG),
    'protoseg_gumbel_psp': dict(
        head=dict(PROTOSEG, context=PSP, bank=dict(BANK, assignment='gumbel'))
    ),
    'car_protoseg': dict(head=PROTOSEG, segmentor='CAREncoderDecoder'),
    'car': dict(head=FCN, segmentor='CAREncoderDecoder'),
    'car_released': dict(
        head=dict(PSP, channels=8), segmentor='CAREncoderDecoder', formulation='released'
    ),
    'car_aspp': dict(head=ASPP, segmentor='CAREncoderDecoder'),
    'car_cc': dict(head=CC, segmentor='CAREncoderDecoder'),
    'car_mdrl': dict(head=MDRL, segmentor='CAREncoderDecoder'),
    # the last of several heads
    'car_cascade': dict(
        head=dict(type='OCRHead', ocr_channels=4), segmentor='CARCascadeEncoderDecoder'
    ),
    # heads that CAR is added to, and that MMSegmentation has not
    'caa': dict(head=CAA),
    'car_caa': dict(head=CAA, segmentor='CAREncoderDecoder'),
    'cp': dict(head=CP),
    'car_cp': dict(head=CP, segmentor='CAREncoderDecoder'),
    'dgcw': dict(head=DGCW),
    'dgcw_psp': dict(head=dict(DGCW, context=dict(PSP, channels=8))),
    'dgcw_aspp': dict(head=dict(DGCW, context=dict(ASPP, channels=8), concat_features=False)),
    'dgcw_cc': dict(head=dict(DGCW, context=dict(CC, channels=8))),
}  # fmt: skip


# Those with a memory of the classes.
WITH_MEMORY = [
    name for name in CASES if name.removeprefix('car_').startswith(('mdrl', 'mcibi', 'protoseg'))
]
# One of each method, for what is slow.
METHODS = ['mdrl', 'mcibi', 'mcibipp', 'protoseg', 'car', 'dgcw']


def shared(core, names=CASES):
    """`names` for parametrize; `make test` takes those of `core`, `make test-guarantees` all."""
    return [
        name if name in core else pytest.param(name, marks=[pytest.mark.slow, pytest.mark.long])
        for name in names
    ]


NORMS = dict(
    BN=nn.BatchNorm2d, GN=lambda channels: nn.GroupNorm(2, channels), SyncBN=nn.SyncBatchNorm
)


@MODELS.register_module(force=True)
class GuaranteesBackbone(BaseModule):
    """Four 3x3 convs with norms; the last two maps at a fourth of the image."""

    def __init__(self, norm_cfg=None, init_cfg=None):
        super().__init__(init_cfg)
        self.layers = nn.ModuleList()
        norm_type = (norm_cfg or {}).get('type', 'BN')
        previous = 3
        for channels, stride in zip(CHANNELS, (2, 2, 1, 1)):
            norm = NORMS[norm_type](channels)
            conv = nn.Conv2d(previous, channels, 3, stride, 1, bias=False)
            self.layers.append(nn.Sequential(conv, norm, nn.ReLU()))
            previous = channels

    def forward(self, x):
        maps = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps


def norm_config(kind='BN'):
    return dict(type='GN', num_groups=2) if kind == 'GN' else dict(type=kind)


def model_config(
    name=None, *, head=None, segmentor='EncoderDecoder', norm='BN', num_classes=NUM_CLASSES,
    auxiliary=True, head_options={}, test_cfg=dict(mode='whole'), image_size=SIZE,
    backbone=None, **more,
):  # fmt: skip
    """Config of the segmentor of a case, or of the options of one."""
    if name is not None:
        case = dict(CASES[name])
        head, segmentor = case.pop('head'), case.pop('segmentor', segmentor)
        more = {**case, **more}
    common = dict(
        in_channels=CHANNELS[-1], in_index=3, num_classes=num_classes, norm_cfg=norm_config(norm),
        dropout_ratio=0.0, align_corners=False,
    )  # fmt: skip
    if head['type'] == 'CPHead':
        head = dict(head, prior_size=tuple(side // 4 for side in image_size))
    config = dict(
        type=segmentor,
        data_preprocessor=dict(
            type='SegDataPreProcessor', mean=[110.0] * 3, std=[60.0] * 3, bgr_to_rgb=True,
            pad_val=0, seg_pad_val=255, size=SIZE,
        ),
        backbone=backbone or dict(type='GuaranteesBackbone', norm_cfg=norm_config(norm)),
        decode_head={**common, 'channels': 8, **head, **head_options},
        train_cfg=dict(),
        test_cfg=test_cfg,
        **more,
    )  # fmt: skip
    if segmentor.endswith('CascadeEncoderDecoder'):
        first = {**common, 'channels': 8, **FCN, 'loss_decode': LESS_CROSS_ENTROPY, **head_options}
        config.update(num_stages=2, decode_head=[first, config['decode_head']])
    if auxiliary:
        config['auxiliary_head'] = dict(
            FCN, **dict(common, in_channels=CHANNELS[2], in_index=2), channels=4,
            loss_decode=LESS_CROSS_ENTROPY,
        )  # fmt: skip
    return config


def from_config(config):
    with DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build(Config(dict(model=config)).model)


def build(name=None, seed=0, dtype=torch.float32, **options):
    """The segmentor of a case in training mode."""
    torch.manual_seed(seed)
    model = from_config(model_config(name, **options))
    return model.to(dtype).train()


def last(heads):
    """The decode head, or its config; of a cascade the last."""
    return heads[-1] if isinstance(heads, (list, torch.nn.ModuleList)) else heads


def label_maps(seed=0, batch=2, size=SIZE, num_classes=NUM_CLASSES, ignored=0.15):
    """Blocks of classes with scattered ignored pixels, [B, H, W]; the third class is nowhere."""
    return tiny_head.label_maps(seed, batch, size, num_classes, ignored=ignored)


def batch(seed=0, size=2, dtype=torch.float32, labels=None, image_size=SIZE, device='cpu'):
    """(images [B, 3, H, W], samples) whose images depend on their labels."""
    if labels is None:
        labels = label_maps(seed, size, image_size)
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randn(256, 3, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    images = colours[labels].permute(0, 3, 1, 2)
    images = images + 0.3 * torch.randn(images.shape, generator=generator, dtype=torch.float64)
    shape = tuple(labels.shape[1:])
    samples = tiny_head.samples(labels, ori_shape=shape, pad_shape=shape)
    return images.to(device, dtype), [sample.to(device) for sample in samples]


def step(model, seed=0, **options):
    """(losses, total) of one iteration, with gradients left on the parameters."""
    like = next(model.parameters())
    losses = model.loss(*batch(seed, dtype=like.dtype, device=like.device, **options))
    total = objective(losses)
    total.backward()
    return losses, total.detach()


def memory(model):
    """The bank's buffers by name; empty for methods without a memory."""
    return {key: value for key, value in model.state_dict().items() if '.bank.' in key}


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


def everything(model, losses=()):
    """State and gradients, copied, and those losses of steps that are given."""
    out = {f'step {i}: {key}': x for i, step in enumerate(losses) for key, x in step.items()}
    out.update(model.state_dict())
    out.update({f'grad {key}': grad for key, grad in gradients(model).items()})
    return {
        key: None if value is None else torch.as_tensor(value).detach().clone()
        for key, value in out.items()
    }


def assert_same(got, expected, rtol=0.0, atol=0.0):
    """Tensors by name, None where the other is None; they may be on two devices."""
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert (got[key] is None) == (value is None), key
        if value is not None:
            torch.testing.assert_close(
                got[key], value, rtol=rtol, atol=atol, check_device=False,
                msg=lambda text, key=key: f'{key}: {text}',
            )  # fmt: skip
