from .car_encoder_decoder import CARCascadeEncoderDecoder, CAREncoderDecoder
from .left_right_tta import LeftRightTTAModel

__all__ = ['CARCascadeEncoderDecoder', 'CAREncoderDecoder', 'LeftRightTTAModel']
