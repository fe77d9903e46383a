"""What the converters of released checkpoints have in common on the command line."""

import argparse
from typing import Optional

from .. import launch
from .converting import Conversion


def converter_parser(description: str, model_help: Optional[str] = None) -> argparse.ArgumentParser:
    """The parser of a converter: config, source, target, --out-config, --cfg-options.

    Args:
        description (str): What the tool does, in its lines.
        model_help (str, optional): Of --model, the name of a released model. Defaults to None:
            there is no such option.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config of this package for the same model')
    parser.add_argument('source', help='released checkpoint')
    parser.add_argument('target', help='file to write')
    if model_help is not None:
        parser.add_argument('--model', help=model_help)
    parser.add_argument('--out-config', help='config to write, changed so that the model fits')
    launch.add_overrides(parser)
    return parser


def report(args: argparse.Namespace, done: Conversion, memory: str) -> None:
    """Prints what was written, what of the config was changed, and what can't be known.

    Args:
        args (argparse.Namespace): Arguments of :func:`converter_parser`.
        done (Conversion): What was done.
        memory (str): What the memory of the model is, for the first line.
    """
    name = f'; {done.model or "not a released model by name"}' if hasattr(args, 'model') else ''
    print(f'{args.target}: {len(done.state)} tensors, {memory}{name}')
    for key, value in done.changed.items():
        print(f'{args.out_config}: model.{key}={value!r}')
    print(*done.notes, sep='\n')
