from .relation_attention import RelationAttention

__all__ = ['RelationAttention']
