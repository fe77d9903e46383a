from .resize_concat_neck import ResizeConcatNeck

__all__ = ['ResizeConcatNeck']
