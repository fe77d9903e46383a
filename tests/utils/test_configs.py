"""Options that aren't numbers are refused when a part is built, those of every class of ours."""

import inspect
import math
from pathlib import Path

import numpy as np
import pytest
from mmseg.registry import HOOKS, MODELS

import mmseg_cmdl
from mmseg_cmdl.utils import check_finite, check_flags

# not by its name, which the folder that holds the whole environment may have too
PACKAGE = Path(mmseg_cmdl.__file__).parent

HEAD = dict(in_channels=8, in_index=0, channels=8, num_classes=3)
CONSISTENCY = [dict(type='ClassLocalConsistencyLoss')]
CAR = dict(
    backbone=dict(
        type='ResNetV1c', depth=18, stem_channels=8, base_channels=8, out_indices=(3,),
        norm_cfg=dict(type='BN'),
    ),
    decode_head=dict(HEAD, type='FCNHead'),
)  # fmt: skip
# what a class can't be built without, and options that it has of others
NEEDED = {
    'ChannelWeighting': dict(channels=8, chunk_size=None),
    'ChannelizedAxialAttention': dict(channels=8),
    'GlobalPoolingContext': dict(channels=8),
    'SqueezeExcitation': dict(channels=8),
    'PointwiseConvs': dict(channels=8),
    'RelationAttention': dict(query_channels=8, key_channels=8, transform_channels=8),
    'CAAHead': dict(HEAD, attention_channels=8, dropout_ratio=0.1),
    'CPHead': dict(HEAD, prior_size=4, prior_channels=8, dropout_ratio=0.1),
    'DistributionBank': dict(num_classes=3, num_distributions=2, channels=8),
    'FeatureBank': dict(num_classes=3, channels=8),
    'DGCWHead': dict(HEAD, dropout_ratio=0.1),
    'MCIBIHead': dict(HEAD, dropout_ratio=0.1),
    'MDRLHead': dict(HEAD, dropout_ratio=0.1, loss_consistency=CONSISTENCY),
    'CAREncoderDecoder': CAR,
    'CARCascadeEncoderDecoder': dict(CAR, num_stages=1, decode_head=[CAR['decode_head']]),
    'SeedPerIterationHook': dict(seed=None),
    'GaussianBank': dict(num_classes=3),
    'MCIBIPlusPlusHead': dict(HEAD, dropout_ratio=0.1),
    'ProtoSegHead': dict(HEAD, dropout_ratio=0.1),
    'ResizeConcatNeck': dict(in_channels=[8, 8]),
}
FREE = {
    'ChannelWeighting': ['chunk_size'],
    'SeedPerIterationHook': ['seed'],
    'CAREncoderDecoder': ['max_channels'],
    'CARCascadeEncoderDecoder': ['max_channels'],
}
OURS = {
    name: cls for registry in (MODELS, HOOKS) for name, cls in registry.module_dict.items()
    if cls.__module__.startswith('mmseg_cmdl.') and 'study' not in cls.__module__
}  # fmt: skip


def numeric_options():
    """(class, option) of all numbers that a class of ours takes."""
    for name, cls in OURS.items():
        options = set(FREE.get(name, []))
        if 'dropout_ratio' in NEEDED.get(name, {}):
            options.add('dropout_ratio')
        for parent in cls.__mro__:
            if parent.__module__.startswith('mmseg_cmdl') and '__init__' in vars(parent):
                for parameter in inspect.signature(parent.__init__).parameters.values():
                    if type(parameter.default) in (int, float):
                        options.add(parameter.name)
        yield from ((name, option) for option in sorted(options))


@pytest.mark.parametrize(('name', 'option'), numeric_options())
def test_no_option_takes_what_is_no_number(name, option):
    options = NEEDED.get(name, {})
    for value in (math.nan, math.inf):
        with pytest.raises((ValueError, TypeError)) as error:
            OURS[name](**{**options, option: value})
        ours = PACKAGE in Path(error.traceback[-1].path).parents
        # or PyTorch refuses it, as the channels of a convolution
        if ours and isinstance(error.value, ValueError):
            assert option in str(error.value), error.value
            assert str(value) in str(error.value), error.value


def flags():
    """(class, option) of everything that is True or False."""
    for name, cls in OURS.items():
        if name == 'TIMMLastMap':  # timm's options
            continue
        parents = [parent for parent in cls.__mro__ if parent.__module__.startswith('mmseg_cmdl')]
        options = {
            parameter.name
            for parent in parents
            if '__init__' in vars(parent)
            for parameter in inspect.signature(parent.__init__).parameters.values()
            if isinstance(parameter.default, bool)
        }
        if cls.__name__.startswith('CAR'):
            options.add('linear')
        yield from ((name, option) for option in sorted(options))


@pytest.mark.parametrize(('name', 'option'), flags())
def test_no_flag_takes_a_text(name, option):
    """'no' of `--cfg-options` would pass for True."""
    with pytest.raises(ValueError, match=rf"\w+: {option} must be True or False, got 'no'"):
        OURS[name](**{**NEEDED.get(name, {}), option: 'no'})


@pytest.mark.parametrize('name', sorted({name for name, _ in numeric_options()}))
def test_without_it_the_class_is_built(name):
    """So it was the option that was refused."""
    OURS[name](**NEEDED.get(name, {}))


def test_flags_are_also_numbers_of_numpy():
    check_flags(object(), a=True, b=0, c=np.bool_(True))
    for value in ('False', None, 2):
        with pytest.raises(ValueError, match='a must be True or False'):
            check_flags(object(), a=value)


def test_check_finite():
    check_finite(object(), a=1, b=0.5, c=None, d=-1e30)
    for value in (math.nan, -math.inf, True, '0.05'):
        with pytest.raises(ValueError, match=r'dict: epsilon must be a finite number, got '):
            check_finite({}, epsilon=value)
