from .exporting import (
    ALLOWED_NODES,
    ExportError,
    check_nodes,
    checked_shapes,
    compare,
    export_program,
    in_channels,
    needed_packages,
    node_types,
    to_onnx,
)
from .inference_model import InferenceModel

__all__ = [
    'ALLOWED_NODES',
    'ExportError',
    'InferenceModel',
    'check_nodes',
    'checked_shapes',
    'compare',
    'export_program',
    'in_channels',
    'needed_packages',
    'node_types',
    'to_onnx',
]
