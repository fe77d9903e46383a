"""The one changed line: what is said where it doesn't do, and what that leads to."""

import re

import pytest
from mmseg.registry import MODELS

from tests.models.decode_heads import tiny_head

ONE = dict(in_channels=16, in_index=3, channels=8, num_classes=3)
SEVERAL = dict(ONE, in_channels=[8, 8, 16, 16], in_index=[0, 1, 2, 3])
OURS = {
    'MDRLHead': dict(loss_consistency=[dict(type='ClassLocalConsistencyLoss')]),
    'MCIBIHead': {},
    'DGCWHead': {},
    'ProtoSegHead': {},
}
# the head that was there, and options of its config in MMSegmentation
BEFORE = {
    'PSPHead': dict(ONE, pool_scales=(1, 2, 3, 6)),
    'UPerHead': dict(SEVERAL, pool_scales=(1, 2, 3, 6)),
    'DepthwiseSeparableASPPHead': dict(ONE, dilations=(1, 12), c1_in_channels=8, c1_channels=4),
    'FPNHead': dict(SEVERAL, feature_strides=[4, 8, 16, 32]),
    'SETRUPHead': dict(ONE, num_convs=2, up_scale=2, kernel_size=3),
    'DAHead': dict(ONE, pam_channels=4),
    'SegformerHead': SEVERAL,
}


@pytest.mark.parametrize('ours', OURS)
@pytest.mark.parametrize('before', BEFORE)
def test_the_message_names_the_head_that_was_there(ours, before):
    """And what it says to write keeps that head."""
    options = dict(BEFORE[before], type=ours, **OURS[ours])
    with pytest.raises((TypeError, ValueError)) as error:
        MODELS.build(dict(options))
    (advised,) = re.findall(r"context=dict\(type='(\w+)'\)", str(error.value))
    assert advised == before, error.value
    head = MODELS.build(dict(options, context=dict(type=advised)))
    assert type(head.context.head).__name__ == before
    # a wrong guess doesn't lead to a config without the decoder
    if before not in ('PSPHead', 'UPerHead', 'SegformerHead'):
        with pytest.raises(TypeError, match=rf'context, PSPHead. .*of {before}') as error:
            MODELS.build(dict(options, context=dict(type='PSPHead')))
        assert 'remove' not in str(error.value)


def test_the_last_head_of_ocrnet():
    options = dict(ONE, type='MCIBIHead', ocr_channels=4)
    with pytest.raises(TypeError, match=r"type='OCRHead'\), in an EncoderDecoder whose only"):
        MODELS.build(dict(options))
    MODELS.build(dict(options, context=dict(type='OCRHead')))
    with pytest.raises(TypeError, match=r'of OCRHead, which can not be the context of DGCWHead'):
        MODELS.build(dict(options, type='DGCWHead'))


@pytest.mark.parametrize('ours', OURS)
@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (dict(ONE, num_layers=2, num_heads=2, embed_dims=16),
         'of SegmenterMaskTransformerHead, which can not be the context'),
        (dict(ONE, no_such_option=1), 'No decode head that is registered has it: remove it'),
        (dict(num_stages=1, kernel_update_head=[], kernel_generate_head=dict(type='FCNHead')),
         'options of IterativeDecodeHead, which holds other heads: change the type of kernel_gen'),
        (dict(num_classes=3, san_cfg={}, maskgen_cfg={}, deep_supervision_idxs=[7]),
         'of SideAdapterCLIPHead, which no head of ours can stand in for. Use a head that ends in'),
        (dict(num_classes=3, channels=8), 'needs in_channels'),
        (dict(ONE, loss_decode=[dict(type='CrossEntropyLoss'), dict(type='OhemCrossEntropy')]),
         r"OhemCrossEntropy takes \['score', 'target'\] and no weight .*OHEMPixelSampler"),
    ],
    ids=['segmenter', 'nobody', 'k-net', 'san', 'incomplete', 'pidnet'],
)  # fmt: skip
def test_what_can_not_be_is_one_sentence(ours, options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        MODELS.build(dict(options, type=ours, **OURS[ours]))


@pytest.mark.parametrize(
    ('name', 'said'),
    [
        # what it asks for and doesn't inherit
        ('SideAdapterCLIPHead', 'also needs san_cfg, maskgen_cfg'),
        ('DAHead', 'also needs pam_channels: set it in `context`'),
        ('OCRHead', 'also needs ocr_channels'),
        # heads of several maps assert, some without a word
        ('UPerHead', 'if it takes several feature maps, set in_channels, in_index'),
        ('SegformerHead', 'if it takes several feature maps, set in_channels, in_index'),
        ('LRASPPHead', 'Use a head that ends in conv_seg'),
        # no decode heads, or with other options
        ('MaskFormerHead', 'is no decode head that classifies pixels'),
        ('KernelUpdateHead', 'is no decode head that classifies pixels'),
        ('VPDDepthHead', 'is no decode head that classifies pixels'),
    ],
)
def test_refusal_says_what_to_do(name, said):
    with pytest.raises(ValueError, match=f'^context: {name} ') as error:
        tiny_head.build(context=dict(type=name))
    assert said in str(error.value)
    assert 'positional argument' not in str(error.value)


POINT = dict(SEVERAL, in_channels=[16], in_index=[3], num_fcs=2, coarse_pred_each_layer=True)


@pytest.mark.parametrize('ours', OURS)
@pytest.mark.parametrize('context', [None, dict(type='PointHead')])
def test_the_last_head_of_pointrend(ours, context):
    """It has no map before a classifier; the head before it can be changed."""
    with pytest.raises((TypeError, ValueError), match='no conv_seg') as error:
        MODELS.build(dict(POINT, type=ours, context=context))
    said = str(error.value)
    assert said.endswith(
        ', or in a cascade change the type of the head before PointHead, which it refines'
    )
    assert 'argument' not in said


def heads_of_all():
    return sorted(
        name
        for name, cls in MODELS.module_dict.items()
        if name.endswith('Head') and cls.__module__.startswith('mmseg')
    )


@pytest.mark.parametrize('options', [ONE, SEVERAL], ids=['one', 'several'])
def test_no_refusal_of_a_context_is_a_message_of_python(options):
    """Whatever head is named, without any of its own options."""
    refused = {}
    for name in heads_of_all():
        try:
            MODELS.build(dict(options, type='MCIBIHead', context=dict(type=name)))
        except (TypeError, ValueError) as error:
            refused[name] = str(error)
    assert {'PointHead', 'VPDDepthHead', 'SideAdapterCLIPHead', 'Mask2FormerHead'} <= set(refused)
    for name, said in refused.items():
        assert said.startswith(f'context: {name} '), said
        assert not re.search(r'__init__|\(\) |positional|keyword argument|\n', said), said


def test_a_context_may_start_by_a_rule_of_its_own():
    """A head that hands a fixed `init_cfg` to its base class; it starts by that, not by ours."""

    class StartsByItself(MODELS.get('FCNHead')):
        def __init__(self, **kwargs):
            super().__init__(init_cfg=dict(type='Constant', val=2.0, layer='Conv2d'), **kwargs)

    head = tiny_head.build(context=dict(type=StartsByItself))
    head.context.init_weights()
    assert (head.context.head.convs[0].conv.weight == 2).all()
