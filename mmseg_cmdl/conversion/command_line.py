"""What the converters of released checkpoints have in common on the command line."""

import argparse
from typing import Optional, Sequence, Union

from ..config_overrides import add_overrides
from ..models.memory.gaussian_bank import left_the_start
from .converting import TOOLBOX_HEADS, convert
from .state_dicts import State


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
    add_overrides(parser)
    return parser


def convert_as_asked(
    args: argparse.Namespace, head: Union[str, Sequence[str]] = TOOLBOX_HEADS
) -> None:
    """Converts, and prints what was written, what of the config was changed, what can't be known.

    Args:
        args (argparse.Namespace): Arguments of :func:`converter_parser`.
        head (str | Sequence[str]): See :func:`~mmseg_cmdl.conversion.convert`.

    Raises:
        ConversionError, InputError: As :func:`~mmseg_cmdl.conversion.convert`.
    """
    done = convert(
        args.config,
        args.source,
        args.target,
        head,
        getattr(args, 'model', None),
        args.cfg_options,
        args.out_config,
    )
    name = f'; {done.model or "not a released model by name"}' if hasattr(args, 'model') else ''
    print(f'{args.target}: {len(done.state)} tensors, {_memory_of(done.state)}{name}')
    for key, value in done.changed.items():
        print(f'{args.out_config}: model.{key}={value!r}')
    print(*done.notes, sep='\n')


def _memory_of(state: State) -> str:
    bank = {key.rpartition('.')[2]: value for key, value in state.items() if '.bank.' in key}
    if 'distributions' in bank:
        return f'bank {tuple(bank["distributions"].shape)}'
    filled = bank['filled'] if 'filled' in bank else left_the_start(bank['statistics'])
    return f'{int(filled.sum())} of {len(filled)} classes in memory'
