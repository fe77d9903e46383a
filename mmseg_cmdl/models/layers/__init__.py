from .channel_weighting import ChannelWeighting
from .channelized_axial_attention import ChannelizedAxialAttention
from .compared_contexts import GlobalPoolingContext, PointwiseConvs, SqueezeExcitation
from .feature_pyramid import FeaturePyramid
from .relation_attention import RelationAttention

__all__ = [
    'ChannelWeighting',
    'ChannelizedAxialAttention',
    'FeaturePyramid',
    'GlobalPoolingContext',
    'PointwiseConvs',
    'RelationAttention',
    'SqueezeExcitation',
]
