"""Options that a head refuses when it is built; the message names the option and the value."""

import pytest

from tests.models.decode_heads import tiny_head

MAPS = dict(in_channels=[8, 10], in_index=[2, 3])
CASCADE = dict(type='OCRHead', ocr_channels=4)
SEGMENTER = dict(
    type='SegmenterMaskTransformerHead', num_layers=1, num_heads=1, embed_dims=8, in_channels=10
)
# by head: options, what the message says
REFUSED = {
    'MDRLHead': [
        (dict(fusion='sum'), "MDRLHead: fusion .* 'sum'"),
        ({**MAPS, 'input_transform': 'multiple_select'}, 'multiple_select'),
        (MAPS, r'\[8, 10\].*\[2, 3\].*resize_concat'),
        (dict(in_channels=[8, 10], in_index=3, context=dict(type='UPerHead')), r'\[8, 10\] and 3'),
        (
            dict(bank=dict(type='FeatureBank')),
            'bank must be the config of a DistributionBank, .* got .*FeatureBank',
        ),
        (dict(bank='DistributionBank'), "bank .* got 'DistributionBank'"),
        (dict(bank=None), 'bank .* got None'),
        (dict(bank=dict(num_distributions=3.0)), 'num_distributions .* got 3.0'),
        (dict(bank=dict(num_distributions='3')), "num_distributions .* got '3'"),
        (dict(embedding='pixels'), "embedding .* 'pixels'"),
        (dict(embedding='pixel', bank=dict(channels=5)), 'pixel.* channels=5 .* channels=8'),
        (dict(loss_consistency=None), 'loss_consistency trains the projection'),
        (
            dict(loss_consistency=dict(type='CrossEntropyLoss')),
            'CrossEntropyLoss is no loss of pixels .* ClassGlobalConsistencyLoss are',
        ),
        (
            dict(loss_consistency=dict(type='PixelPrototypeContrastLoss')),
            'loss_consistency: PixelPrototypeContrastLoss is no loss of pixels',
        ),
        (dict(context='PSPHead'), r"context .*dict\(type='PSPHead'\), got 'PSPHead'"),
        (dict(context=dict()), 'context .* got {}'),
        (dict(context=dict(type='MDRLHead')), 'context: MDRLHead has a memory of its own'),
        (dict(context={**MAPS, 'type': 'PSPHead'}), r'PSPHead.*\[8, 10\].*multiple_select'),
        (dict(context=SEGMENTER), 'context: SegmenterMaskTransformerHead has no conv_seg'),
        (dict(pixels='context'), "pixels must be 'backbone', or 'context' together with a context"),
        (dict(pixels='decoder'), "got 'decoder'"),
        (dict(pixels='context', context=CASCADE), 'not a cascade head'),
        (dict(key_stride=0), 'key_stride must be an integer of at least 1, got 0'),
        (dict(loss_stride=0), 'loss_stride must be an integer of at least 1, got 0'),
        (dict(loss_stride=True), 'loss_stride must be an integer of at least 1, got True'),
    ],
    'MCIBIHead': [
        (dict(update_size='image'), "update_size .* 'image'"),
        (dict(memory_momentum=1.5), 'memory_momentum .* 1.5'),
        (dict(momentum_power=-1), 'momentum_power .* -1'),
        (dict(memory_loss_start=-3), 'memory_loss_start .* -3'),
        (dict(bank=dict(channels=5)), 'channels=5 .* channels=8'),
        (dict(fusion='sum'), "MCIBIHead: fusion .* 'sum'"),
        *(
            (dict(max_iters=value), f'max_iters is the number of training iterations.* {value}')
            for value in (0, -3, 2.5)
        ),
    ],
    'MCIBIPlusPlusHead': [
        (dict(num_passes=0), 'num_passes must be an integer of at least 1, got 0'),
        (dict(warmup_iters=-1), 'warmup_iters must be an integer of at least 0, got -1'),
        (dict(bank=dict(type='FeatureBank')), 'bank must be the config of a GaussianBank'),
        (dict(final_kernel_size=2), 'final_kernel_size must be odd, got 2'),
        (dict(weights_from='memory'), "must be 'context' or 'coarse', got 'memory'"),
        (dict(pyramid=dict(in_channels=[3])), 'pyramid needs in_channels and in_index'),
        (dict(pyramid=dict(in_channels=3, in_index=1)), 'pyramid needs in_channels and in_index'),
        (dict(bank=dict(channels=3)), 'bank channels=3 must equal channels=8'),
    ],
    'ProtoSegHead': [
        (dict(norm_axis='width'), "norm_axis must be 'channel' or 'released'"),
        (
            dict(loss_prototype=dict(type='ClassLocalConsistencyLoss')),
            'ClassLocalConsistencyLoss is no loss of pixels .* PixelPrototypeDistanceLoss are',
        ),
        (dict(bank=dict(type='FeatureBank')), 'bank must be the config of a DistributionBank'),
        (dict(context=CASCADE), 'that is not a cascade head, such as'),
    ],
    'DGCWHead': [
        (dict(downsample=0), 'downsample must be an integer of at least 1, got 0'),
        (dict(downsample=1.5), 'downsample must be an integer of at least 1, got 1.5'),
        ({**MAPS, 'input_transform': 'multiple_select'}, 'multiple_select'),
        (dict(context=CASCADE), 'OCRHead refines the logits of a head before it'),
        (dict(context=dict(type='SegmenterMaskTransformerHead')), 'also needs num_layers'),
    ],
    'CPHead': [(dict(prior_size=(5, 6), kernel_size=4), 'kernel_size must be odd, got 4')],
}


@pytest.mark.parametrize(
    ('kind', 'options', 'message'),
    [(kind, *case) for kind, cases in REFUSED.items() for case in cases],
)
def test_refused_when_built(kind, options, message):
    with pytest.raises(ValueError, match=message):
        tiny_head.make(kind, **options)


@pytest.mark.parametrize(
    ('kind', 'options', 'message'),
    [
        ('DGCWHead', dict(pool_scale=2), r"DGCWHead has no option \['pool_scale'\]"),
        ('MDRLHead', dict(num_distribution=2), r'did you mean bank\.num_distributions\?'),
        ('MCIBIHead', dict(bank=dict(strategi='mean')), r'bank has no .* did you mean strategy\?'),
        ('MDRLHead', dict(loss_consistency=['intra']), r"dict\(type='...', ...\), got 'intra'"),
        ('MDRLHead', dict(loss_consistency='intra'), r"dict\(type='...', ...\), got 'intra'"),
        ('MDRLHead', dict(loss_coarse='x'), r"dict\(type='...', ...\), got 'x'"),
        ('MCIBIPlusPlusHead', dict(pyramid='x'), r"pyramid is dict\(.*, got 'x'"),
        ('MCIBIPlusPlusHead', dict(pyramid=dict(in_chanels=[3])), r'did you mean in_channels\?'),
    ],
)
def test_an_unknown_option_is_refused(kind, options, message):
    with pytest.raises(TypeError, match=message):
        tiny_head.make(kind, **options)


def test_a_context_that_needs_another_package_is_named():
    # The fork's Mask2FormerHead itself refuses to be built without MMDetection.
    with pytest.raises((ValueError, ImportError), match='Mask2FormerHead'):
        tiny_head.build(context=dict(type='Mask2FormerHead'))
