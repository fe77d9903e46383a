"""What the commands in tools/analysis share: arguments, models, progress and files of numbers."""

import argparse
import json
import math
import random
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence

import numpy as np
import torch

from ..command_line import device, positive, seed
from ..config_overrides import add_overrides
from ..errors import InputError
from ..written_files import make_folder, refuse_same, written_beside
from .examined_model import FEATURES, SPLITS, ExaminedModel


def parser_of(
    doc: str, several: bool = True, features: Optional[str] = None, images: bool = True
) -> argparse.ArgumentParser:
    """Parser with the common arguments.

    Args:
        doc (str): Docstring of the command.
        several (bool): Whether several models can be compared.
        features (str, optional): Default of --features, if the command has it.
        images (bool): Whether the command goes over a split's images.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if several:
        parser.add_argument(
            'models',
            nargs='+',
            metavar='CONFIG CHECKPOINT',
            help='config and checkpoint, of each model to compare',
        )
        parser.add_argument(
            '--names',
            nargs='+',
            metavar='NAME',
            help="what the models are called (default: their configs' names)",
        )
    else:
        parser.add_argument('config', help='config file')
        parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument(
        '--out', type=Path, required=True, metavar='FOLDER', help='folder for pictures and numbers'
    )
    parser.add_argument(
        '--split', choices=SPLITS, default='val', help='data of the config (default: %(default)s)'
    )
    if images:
        parser.add_argument(
            '--max-images',
            type=positive,
            metavar='N',
            help='use N images at most, spread evenly over the split (default: all)',
        )
    if features:
        parser.add_argument(
            '--features',
            choices=FEATURES,
            default=features,
            help='what enters conv_seg (classifier), the unit vectors compared with the '
            'distributions (embedding, MDRLHead only), or the feature map that the head selects '
            '(backbone); default: %(default)s',
        )
    parser.add_argument(
        '--device', type=device, default='cpu', help='cpu, cuda or cuda:1 (default: cpu)'
    )
    parser.add_argument('--seed', type=seed, default=0, help='of all random draws (default: 0)')
    add_overrides(parser, 'the configs')
    return parser


def parse(
    parser: argparse.ArgumentParser, argv: Optional[Sequence[str]] = None
) -> argparse.Namespace:
    """Parsed arguments with `models` as pairs; the seeds are set and the folder is made.

    Raises:
        InputError: --out can't be written to, or is an input.
    """
    args = parser.parse_args(argv)
    files = args.models if 'models' in args else [args.config, args.checkpoint]
    if len(files) % 2:
        parser.error(
            'each model is a config and a checkpoint; got an odd number of files: '
            + ' '.join(files)
        )
    args.models = list(zip(files[::2], files[1::2]))
    names = getattr(args, 'names', None)
    if names is not None and len(names) != len(args.models):
        parser.error(f'--names has {len(names)} names for {len(args.models)} models')
    args.names = names or distinct_names([Path(config).stem for config, _ in args.models])
    if len(set(args.names)) < len(args.names):
        parser.error('--names must differ from each other')
    random.seed(args.seed)
    np.random.seed(args.seed)  # noqa: NPY002  for pipelines that draw from it
    torch.manual_seed(args.seed)
    refuse_same(args.out, files, '--out')
    make_folder(args.out)
    return args


def distinct_names(names: List[str]) -> List[str]:
    """Numbers those that occur more than once."""
    seen: Dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if names.count(name) == 1 else f'{name} ({seen[name]})')
    return out


def load_models(args: argparse.Namespace) -> Iterator[ExaminedModel]:
    """One model after the other, so that only one is held if the caller keeps none.

    Raises:
        InputError: The models don't have the same classes.
    """
    classes = None
    for name, (config, checkpoint) in zip(args.names, args.models):
        model = ExaminedModel.load(
            config, checkpoint, args.split, args.device, args.cfg_options, name
        )
        if classes is not None and model.classes != classes:
            raise InputError(
                f'{name} has other classes than {args.names[0]}; only models of '
                'one data set can be compared'
            )
        classes = model.classes
        yield model


def image_indices(total: int, maximum: Optional[int]) -> List[int]:
    """All indices, or `maximum` spread evenly."""
    if maximum is None or maximum >= total:
        return list(range(total))
    return [i * total // maximum for i in range(maximum)]


def progress(items: Iterable, total: int, label: str) -> Iterable:
    """Yields the items and tells on stderr how far it is."""
    from rich.console import Console
    from rich.progress import track

    return track(items, label, total, console=Console(stderr=True))


def write_json(path: Path, numbers: Any) -> None:
    """Numbers as JSON; NaN and infinity, which JSON hasn't, as null."""
    write_text(path, json.dumps(plain(numbers), indent=1, allow_nan=False) + '\n')


def write_text(path: Path, text: str) -> None:
    """A file of text, whole or as it was."""
    with written_beside(path) as file:
        file.write_text(text, encoding='utf-8')


def write_arrays(path: Path, **arrays: Any) -> None:
    """Named arrays as NPZ, whole or as it was."""
    with written_beside(path) as file:
        np.savez_compressed(file, **arrays)


def plain(value: Any) -> Any:
    """Arrays and tensors as lists, numbers as Python's."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (np.ndarray, torch.Tensor)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f'{value:.6g}') if math.isfinite(value) else None
    return value
