from .channel_weighting import ChannelWeighting
from .channelized_axial_attention import ChannelizedAxialAttention
from .compared_contexts import GlobalPoolingContext, PointwiseConvs, SqueezeExcitation
from .relation_attention import RelationAttention

__all__ = [
    'ChannelWeighting',
    'ChannelizedAxialAttention',
    'GlobalPoolingContext',
    'PointwiseConvs',
    'RelationAttention',
    'SqueezeExcitation',
]
