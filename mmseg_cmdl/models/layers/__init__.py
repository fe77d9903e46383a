from .channel_weighting import ChannelWeighting
from .relation_attention import RelationAttention

__all__ = ['ChannelWeighting', 'RelationAttention']
