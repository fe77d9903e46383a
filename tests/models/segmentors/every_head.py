"""Every decode head of MMSegmentation and of this package, small: what each needs."""

import inspect

import mmseg.models.decode_heads as stock
from mmengine.model import BaseModule
from mmseg.registry import MODELS

from tests.models.decode_heads import tiny_head
from tests.models.segmentors.tiny_segmentor import head

ALL_MAPS = dict(in_channels=list(tiny_head.CHANNELS), in_index=[0, 1, 2, 3])
FIRST = head(num_convs=1)  # the first stage of a cascade

# Options of a head that can be trained here; a list is a cascade.
HEADS = {
    'FCNHead': {},
    'PSPHead': dict(pool_scales=(1, 2)),
    'ASPPHead': dict(dilations=(1, 2)),
    'NLHead': {},
    'GCHead': {},
    'CCHead': {},
    'UPerHead': dict(pool_scales=(1, 2), **ALL_MAPS),
    'DepthwiseSeparableASPPHead': dict(dilations=(1, 2), c1_in_channels=4, c1_channels=4),
    'ANNHead': dict(in_channels=[8, 10], in_index=[2, 3], project_channels=4),
    'DAHead': dict(pam_channels=4),
    'EncHead': dict(in_channels=[6, 8, 10], in_index=[1, 2, 3], num_codes=4),
    'DepthwiseSeparableFCNHead': {},
    'FPNHead': dict(in_channels=[8] * 4, in_index=[0, 1, 2, 3], feature_strides=[4, 8, 16, 16]),
    'EMAHead': dict(ema_channels=8, num_bases=4, num_stages=2),
    'DNLHead': {},
    'APCHead': dict(pool_scales=(1, 2)),
    'DMHead': dict(filter_sizes=(1, 3)),
    'LRASPPHead': dict(
        in_channels=[4, 6, 10],
        in_index=[0, 1, 3],
        branch_channels=(4, 4),
        input_transform='multiple_select',
    ),
    'SETRUPHead': dict(norm_cfg=dict(type='BN')),
    'SETRMLAHead': dict(in_channels=[8] * 4, in_index=[0, 1, 2, 3], channels=16, mla_channels=4),
    'SegformerHead': dict(**ALL_MAPS),
    'ISAHead': dict(isa_channels=4, down_factor=(2, 2)),
    'STDCHead': dict(num_convs=1),
    'LightHamHead': dict(
        in_channels=[6, 8, 10], in_index=[1, 2, 3], ham_channels=8, ham_kwargs=dict(MD_R=4)
    ),
    'PIDHead': dict(in_channels=8, in_index=0),
    'DDRHead': dict(in_channels=8, in_index=0),
    'DPTHead': dict(
        in_channels=[8] * 4,
        in_index=[0, 1, 2, 3],
        embed_dims=8,
        post_process_channels=[4, 4, 8, 8],
        input_transform='multiple_select',
    ),
    'OCRHead': [FIRST, dict(ocr_channels=4)],
    'CPHead': dict(prior_size=tiny_head.SIZES[-1], prior_channels=6, kernel_size=3),
    'CAAHead': dict(attention_channels=6, attention=dict(query_channels=4)),
    'DGCWHead': dict(downsample=2),
    'MDRLHead': dict(bank=dict(type='DistributionBank', num_distributions=2)),
    'MCIBIHead': {},
    'MCIBIPlusPlusHead': {},
    'ProtoSegHead': dict(bank=dict(type='DistributionBank', num_distributions=2)),
}

# conv_seg is there, and yet CAR has nothing to work on, or the head can't run here.
EXCEPTIONS = {
    'PSAHead': 'its PSAMask is a compiled op of mmcv, which this environment may lack',
    'MaskFormerHead': 'needs mmdet, and classifies queries instead of pixels',
    'Mask2FormerHead': 'needs mmdet, and classifies queries instead of pixels',
}

# Heads without conv_seg are refused, see the test; these can be built without further packages.
WITHOUT = {
    'PointHead': [
        FIRST,
        dict(num_fcs=1, in_channels=[10], in_index=[3], channels=8, norm_cfg=None),
    ],
    'SegmenterMaskTransformerHead': dict(num_layers=1, num_heads=2, embed_dims=8),
}

MODULES = ('mmseg.models.decode_heads', 'mmseg_cmdl.models.decode_heads')
NO_DECODE_HEAD = {
    'KernelUpdateHead': 'a stage of IterativeDecodeHead',
    'KernelUpdator': 'a part of IterativeDecodeHead',
    'IterativeDecodeHead': 'holds its conv_seg in kernel_generate_head and uses the '
    'kernel itself as queries, so nothing can stand before it',
    'VPDDepthHead': 'predicts depth, not classes',
    'SideAdapterCLIPHead': 'deletes its conv_seg: it classifies masks with CLIP',
}


def registered():
    """Names of all decode heads that MMSegmentation and this package register."""
    found = set()
    for name, cls in MODELS.module_dict.items():
        if inspect.isclass(cls) and cls.__module__.startswith(MODULES):
            found.add(name)
    return found | {name for name in stock.__all__ if name in MODELS.module_dict}


def config(name):
    """decode_head of a segmentor with this head."""
    options = HEADS.get(name, WITHOUT.get(name))
    if isinstance(options, list):
        return [*options[:-1], head(name, **options[-1])]
    return head(name, **options)


@MODELS.register_module()
class MapsAsHeadWants(BaseModule):
    """Maps as the neck or backbone of some heads gives them, from four of eight channels."""

    def __init__(self, form):
        super().__init__()
        self.maps = MODELS.build(dict(type='FourMaps', channels=[8] * 4))
        self.form = form

    def forward(self, x):
        maps = self.maps(x)
        if self.form == 'pid':  # in training (p, i, d), of half, all and half channels
            return (maps[0][:, :4], maps[0], maps[0][:, 4:]) if self.training else maps[0]
        if self.form == 'ddr':
            return (maps[0][:, :4], maps[0]) if self.training else maps[0]
        if self.form == 'cls':  # a transformer's maps with their class tokens
            return [[x, x.mean((2, 3))] for x in maps[3:] * 4]
        return maps[3:] * 4 if self.form == 'one_size' else maps


def backbone(name):
    """Config of a backbone whose maps the head takes; None for the usual one."""
    if name == 'LRASPPHead':  # pools over 49 x 49
        return dict(type='FourMaps', sizes=[(52, 52)] * 4)
    form = {
        'PIDHead': 'pid',
        'DDRHead': 'ddr',
        'DPTHead': 'cls',
        'FPNHead': 'even',
        'SETRMLAHead': 'one_size',
    }.get(name)
    return form and dict(type='MapsAsHeadWants', form=form)


def losses(name):
    """loss_decode of heads that want several."""
    ce = dict(type='CrossEntropyLoss', loss_weight=1.0)
    ohem = dict(type='OhemCrossEntropy', thres=0.9, min_kept=100)
    if name == 'PIDHead':
        return dict(loss_decode=[ce, ohem, dict(type='BoundaryLoss'), ohem])
    if name == 'DDRHead':
        return dict(loss_decode=[ohem, ohem])
    return {}
