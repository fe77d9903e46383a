from .channel_weighting import ChannelWeighting
from .compared_contexts import GlobalPoolingContext, PointwiseConvs, SqueezeExcitation
from .relation_attention import RelationAttention

__all__ = [
    'ChannelWeighting',
    'GlobalPoolingContext',
    'PointwiseConvs',
    'RelationAttention',
    'SqueezeExcitation',
]
