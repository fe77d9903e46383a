"""torch.export and ONNX with dynamic batch and size, and the checks that an export has to pass."""

import logging
import re
from collections import Counter
from importlib.util import find_spec
from typing import Any, Callable, Dict, Iterable, List, Tuple

import torch
from packaging.version import Version
from torch import Tensor, nn

from ..errors import InputError

# What runtimes of every kind have. No control flow (If, Loop, Scan), nothing whose shape depends
# on values (NonZero), no scattered writes (ScatterND), nothing random.
_NODE_TYPES = """
    Abs Add And ArgMax AveragePool BatchNormalization Cast Ceil Clip Concat Constant
    ConstantOfShape Conv ConvTranspose Div Equal Erf Exp Expand Flatten Floor Gather Gelu
    Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GroupNormalization
    HardSigmoid HardSwish Identity InstanceNormalization LayerNormalization LeakyRelu Less
    LessOrEqual Log LogSoftmax MatMul Max MaxPool Mean Min Mod Mul Neg Not Or PRelu Pad Pow
    Range Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape Resize
    Shape Sigmoid Sign Size Slice Softmax Split Sqrt Squeeze Sub Sum Tanh Tile Transpose
    Trilu Unsqueeze Where
"""
ALLOWED_NODES = frozenset(_NODE_TYPES.split())

SMALLEST_SIDE = 32
OLDEST_TORCH = '2.6'


class ExportError(InputError, RuntimeError):
    """The model can't be exported, or the export isn't the model; says why and what to do."""


def needed_packages(paths: Iterable[str], check: bool = True) -> None:
    """Checks that what an export needs is installed, before any work is done.

    Args:
        paths (Iterable[str]): Files to write, ending in .onnx or .pt2.
        check (bool): Whether they are to be compared with PyTorch. Defaults to True.

    Raises:
        ExportError: PyTorch is too old, or a package is missing.
    """
    if Version(torch.__version__) < Version(OLDEST_TORCH):
        raise ExportError(
            f'exporting needs PyTorch {OLDEST_TORCH} or newer, but this is {torch.__version__}; '
            'training and testing go on with this one, the export can be made in an environment '
            f"of its own, with: pip install 'torch>={OLDEST_TORCH}'"
        )
    if any(str(path).endswith('.onnx') for path in paths):
        names = ['onnx', 'onnxscript'] + ['onnxruntime'] * check
        missing = [name for name in names if find_spec(name) is None]
        if missing:
            hint = '; or pass --no-check' if missing == ['onnxruntime'] else ''
            raise ExportError(
                f'an ONNX file needs {" and ".join(missing)}, not installed here; run: '
                f'pip install {" ".join(missing)}{hint}'
            )


def in_channels(model: nn.Module) -> int:
    """Channels of the images that a model takes: those of its first convolution."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return 3


def export_program(
    model: nn.Module, smallest_side: int = SMALLEST_SIDE
) -> 'torch.export.ExportedProgram':
    """Record `model` with dynamic batch, height and width.

    Args:
        model (nn.Module): [B, C, H, W] to one tensor; an :class:`InferenceModel`, say.
        smallest_side (int): Height and width that will be fed are at least this.

    Raises:
        ExportError: With what torch.export says about it; or PyTorch is too old.
    """
    needed_packages([])
    side = max(smallest_side, 64)
    images = _images(next(model.parameters()), 2, side, side + 32, in_channels(model))
    sides = {i + 2: torch.export.Dim(name, min=smallest_side)
             for i, name in enumerate(('height', 'width'))}  # fmt: skip
    shapes = ({0: torch.export.Dim('batch'), **sides},)
    try:
        with torch.no_grad():
            return torch.export.export(model, (images,), dynamic_shapes=shapes)
    except Exception as error:
        # what torch.export suggests where sides are too small for the last of many strides
        needed = max(map(int, re.findall(r"= Dim\('\w+', min=(\d+)", str(error))), default=0)
        if needed > smallest_side:
            raise ExportError(
                f'this model can not be recorded for sides of {smallest_side} pixels, only for '
                f'{needed} and more: set --smallest-side {needed}'
            ) from error
        raise ExportError(
            f'torch.export cannot record this model with dynamic batch and size: {error}\nIf this '
            'says that a size is too small, raise --smallest-side; if it names a line of a head '
            'that you wrote, that line looks at values or fixes a size'
        ) from error


def to_onnx(
    program: 'torch.export.ExportedProgram',
    path: str,
    opset: int = 18,
    metadata: Dict[str, str] = {},
) -> None:
    """Write an exported program as ONNX: input `images`, output `output`, dynamic as recorded.

    Args:
        program (ExportedProgram): From :func:`export_program`.
        path (str): File to write. Weights over 2 GB go to a file beside it.
        opset (int): Version of ONNX's operator set.
        metadata (dict[str, str]): Goes into the file's properties.

    Raises:
        ExportError: onnx or onnxscript is missing, the exporter refuses, or it leaves the model at
            another operator set.
    """
    needed_packages([path], check=False)
    # it only warns, with a traceback, where it can't convert; the error below says it in a sentence
    converter = logging.getLogger('onnxscript.version_converter')
    level = converter.level
    converter.setLevel(logging.ERROR)
    try:
        exported: Any = torch.onnx.export(
            program, dynamo=True, opset_version=opset, input_names=['images'],
            output_names=['output'], verbose=False,
        )  # fmt: skip
    except Exception as error:
        raise ExportError(f'the ONNX exporter of PyTorch refuses the model: {error}') from error
    finally:
        converter.setLevel(level)
    written = exported.model.opset_imports.get('')
    if written != opset:
        raise ExportError(
            f'this model can not be written with opset {opset}: PyTorch writes opset {written}, '
            f'and ONNX has no conversion of its nodes to {opset}. Set --opset {written}, or none'
        )
    _name_axes(exported.model.graph)
    exported.model.metadata_props.update(metadata)
    exported.save(path)


def _name_axes(graph: Any) -> None:
    """Calls the dynamic sizes batch, height and width, in place of the exporter's symbols."""
    import onnx_ir

    names = {
        str(graph.inputs[0].shape[axis]): name
        for axis, name in ((0, 'batch'), (2, 'height'), (3, 'width'))
    }
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    for value in values:
        sizes = [names.get(str(size), size) for size in value.shape or ()]
        if sizes != list(value.shape or ()):  # as a new shape: a converted graph's are frozen
            value.shape = onnx_ir.Shape(sizes)


def node_types(path: str) -> Dict[str, int]:
    """How many nodes of each type an ONNX file has, those of subgraphs and functions included."""
    import onnx_ir

    model = onnx_ir.load(path)
    graphs: List[Any] = [model.graph, *model.functions.values()]
    counts = Counter(
        f'{node.domain}.{node.op_type}'.lstrip('.')
        for graph in graphs
        for node in onnx_ir.traversal.RecursiveGraphIterator(graph)
        if node.op_identifier() not in model.functions
    )
    return dict(sorted(counts.items()))


def check_nodes(path: str, also: Iterable[str] = ()) -> Dict[str, int]:
    """:func:`node_types`, after a check that all are in `ALLOWED_NODES` or named in `also`.

    Raises:
        ExportError: Names the node types that aren't allowed.
    """
    counts = node_types(path)
    foreign = sorted(set(counts) - ALLOWED_NODES - set(also))
    if foreign:
        raise ExportError(
            f'the ONNX graph has nodes outside the allow-list: {", ".join(foreign)}. Runtimes '
            'differ in how well they support these; if yours does, pass --allow '
            f'{" ".join(foreign)}'
        )
    return counts


def _images(
    like: Tensor,
    batch: int,
    height: int,
    width: int,
    channels: int,
    scale: float = 1.0,
    shift: float = 0.0,
) -> Tensor:
    generator = torch.Generator().manual_seed(height * width + batch)
    images = torch.randn(batch, channels, height, width, generator=generator) * scale + shift
    return images.to(like)


def checked_shapes(smallest_side: int = SMALLEST_SIDE) -> List[Tuple[int, int, int]]:
    """(batch, height, width) of images to compare on: three sizes and two batch sizes.

    No size is that of the recording, and one is no multiple of any stride.
    """
    side = max(smallest_side, 64)
    sizes = ((side, side), (side + 33, side + 1), (side + 16, 2 * side))
    return [(batch, *size) for batch in (1, 3) for size in sizes]


def compare(
    reference: Callable,
    candidate: Callable,
    like: torch.Tensor,
    shapes: Iterable[Tuple[int, int, int]] = tuple(checked_shapes()),
    tolerance: float = 1e-4,
    raw: bool = False,
    channels: int = 3,
) -> float:
    """Largest difference between two functions of random images, over all `shapes`.

    Differences are counted relative to the largest output where that is above 1. Labels may
    differ for one pixel in a thousand, where two classes are within rounding of each other.

    Args:
        reference, candidate (Callable): [B, 3, H, W] to a tensor.
        like (Tensor): Gives the images their dtype and device.
        shapes (Iterable[tuple[int]]): (B, H, W).
        tolerance (float): Largest difference allowed.
        raw (bool): Images of 0..255 instead of normalised ones.
        channels (int): Channels of the images. Defaults to 3.

    Raises:
        ExportError: Another shape, something not finite, or a larger difference.
    """
    worst = 0.0
    scale, shift = (50.0, 110.0) if raw else (1.0, 0.0)
    for batch, height, width in shapes:
        images = _images(like, batch, height, width, channels, scale, shift)
        with torch.no_grad():
            expected, got = reference(images), candidate(images)
        name = f'{batch}x{channels}x{height}x{width}'
        if got.shape != expected.shape:
            raise ExportError(
                f'on images {name} the export gives {tuple(got.shape)}, the model '
                f'{tuple(expected.shape)}'
            )
        if not expected.is_floating_point():
            difference = (got != expected).double().mean().item()
            limit = 1e-3
        else:
            if not got.isfinite().all():
                raise ExportError(f'on images {name} the export gives numbers that are not finite')
            difference = (got - expected).abs().max() / expected.abs().max().clamp(min=1)
            difference, limit = difference.item(), tolerance
        if difference > limit:
            raise ExportError(
                f'on images {name} the export differs from the model by {difference:.2g}, more '
                f'than {limit:g}'
            )
        worst = max(worst, difference)
    return worst
