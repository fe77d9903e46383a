from .car_encoder_decoder import CARCascadeEncoderDecoder, CAREncoderDecoder

__all__ = ['CARCascadeEncoderDecoder', 'CAREncoderDecoder']
