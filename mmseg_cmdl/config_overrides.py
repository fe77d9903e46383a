"""--cfg-options: settings of a config that a command line overrides, checked before use."""

import argparse
import ast
import copy
import inspect
import re
from typing import Any, Optional, Tuple

from mmengine.config import Config, DictAction
from mmseg.registry import MODELS

from .errors import InputError, one_line


def parse_override(pair: str) -> Tuple[str, Any]:
    """KEY=VALUE of a command line: values as mmengine's DictAction reads them, or Python's.

    Raises:
        InputError: It isn't of that form, or the value can't be read.
    """
    key, equals, value = pair.partition('=')
    if not equals or not all(key.split('.')):
        raise InputError(f'{pair!r} is not KEY=VALUE')
    if value[:1] in ('[', '(', '{'):
        try:
            return key, ast.literal_eval(value)
        except (SyntaxError, ValueError):
            pass  # [a,b]: names without quotes
    try:
        return key, DictAction._parse_iterable(value)
    except AssertionError as error:
        raise InputError(f'the value in {pair!r} can not be read: {error}') from None
    except RecursionError:  # a call in brackets, [dict(a=1,b=2)]
        raise InputError(
            f"{pair!r}: the value is none of Python's numbers, strings, lists and dicts "
            "(a dict reads {'a':1,'b':2})"
        ) from None


class Overrides(argparse.Action):
    """KEY=VALUE words into a dict, see :func:`parse_override`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: Optional[str] = None,
    ) -> None:
        try:
            found = dict(map(parse_override, values))
        except InputError as error:
            parser.error(f'argument {option_string}: {error}')
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest, None) or {}), **found})


def add_overrides(parser: argparse.ArgumentParser, of: str = 'the config') -> None:
    """Add --cfg-options."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=Overrides,
        metavar='KEY=VALUE',
        help=f'override settings of {of}: model.decode_head.channels=64 '
        'train_dataloader.batch_size=4 model.auxiliary_head.1.channels=32; lists as key=a,b or '
        "key='[a,b]', without spaces",
    )


def as_typed(options: Optional[dict]) -> str:
    """Overrides as the words of a command line."""
    words = ' '.join(f'{key}={value}' for key, value in (options or {}).items())
    return f'--cfg-options {words}'.rstrip()


def override(cfg: Config, options: Optional[dict], path: str) -> None:
    """Put overrides into a config, into entries of defaults that stand in code too.

    Args:
        cfg (Config): Changed in place.
        options (dict, optional): Dotted keys to values.
        path (str): Its file, for the message.

    Raises:
        InputError: One of them doesn't fit.
    """
    if not options:
        return
    write_out_defaults(cfg, options)
    check_overrides(cfg, options)
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise InputError(f'{as_typed(options)} does not fit {path}: {one_line(error)}') from error


def write_out_defaults(cfg: Config, options: dict) -> None:
    """Write a default in code into the config where an override changes one entry of it.

    For example, with `model.decode_head.loss_consistency.0.loss_weight=0.1` and a config that
    doesn't set loss_consistency, MDRLHead's default of two losses is written into the config, and
    the override changes the first of them.

    Args:
        cfg (Config): Its `model` is changed in place.
        options (dict): Dotted keys to values.
    """
    for key in options:
        parts = key.split('.')
        node = cfg if parts[0] == 'model' else None
        for i, part in enumerate(parts[:-1]):
            if isinstance(node, (list, tuple)):
                inside = part.isdigit() and int(part) < len(node)
                node = node[int(part)] if inside else None
                continue
            if not isinstance(node, (dict, Config)):
                break
            if part not in node:
                name = '.'.join([*parts[:i], 'type'])
                default = _default_in_code(options.get(name, node.get('type')), part)
                if default is None:
                    break
                node[part] = default
            node = node[part]


def _default_in_code(kind: Any, option: str) -> Any:
    """A dict or list of dicts that a registered class has for an option; None if it has none."""
    cls = MODELS.get(kind) if isinstance(kind, str) else kind
    for parent in (*getattr(cls, '__mro__', ()), *getattr(cls, 'takes_options_of', ())):
        if '__init__' not in vars(parent):
            continue
        found = inspect.signature(parent.__init__).parameters.get(option)
        if found is None:
            continue
        default = found.default
        default = list(default) if isinstance(default, tuple) else default
        entries = default if isinstance(default, list) else [default]
        if entries and all(isinstance(entry, dict) for entry in entries):
            return Config(dict(default=copy.deepcopy(default))).default
        return None
    return None


def check_overrides(cfg: Config, options: dict) -> None:
    """Refuse overrides that can't fit the config, before anything is built with them.

    Raises:
        InputError: An index into a list that the config doesn't have, or that is shorter; a key
            inside something that isn't a dict; text in place of a number or a bool; a single value
            in place of a dict.
    """
    for key, value in options.items():
        node, parts = cfg.to_dict(), key.split('.')
        for i, part in enumerate(parts):
            name = '.'.join(parts[:i])
            is_index = re.fullmatch(r'-?\d+', part)
            if isinstance(node, (list, tuple)):
                if not is_index or not 0 <= int(part) < len(node):
                    raise InputError(
                        f'--cfg-options {key}: {name} is a list of {len(node)}; name an entry by '
                        f'0 to {len(node) - 1}, or give the whole list'
                    )
                node = node[int(part)]
            elif is_index and node is None:
                raise InputError(
                    f'--cfg-options {key}: the config has no {name}, so there is no entry {part} '
                    'to change (a default in code is not part of the config); give the whole list: '
                    f"{name}='[dict, ...]', as Python writes it"
                )
            elif isinstance(node, dict):
                if is_index and part not in node and 'type' in node:
                    raise InputError(
                        f'--cfg-options {key}: {name} is one dict, not a list; leave out .{part}'
                    )
                node = node.get(part)
            elif node is None:
                break  # a new key
            else:
                raise InputError(
                    f'--cfg-options {key}: {name} is {node!r} in the config, which has no {part}'
                )
        else:
            _check_kind(key, node, value)


def _check_kind(key: str, old: Any, new: Any) -> None:
    is_number = isinstance(old, (int, float)) and not isinstance(old, bool)
    wrong = (
        (isinstance(old, bool) and isinstance(new, str) and 'on or off (True, False)')
        or (is_number and isinstance(new, (str, bool)) and f'a number ({old})')
        or (
            isinstance(old, dict)
            and 'type' in old
            and not isinstance(new, (dict, list, tuple, type(None)))
            and 'a dict; override its entries, as in ' + f'{key}.type=...'
        )
    )
    if wrong:
        raise InputError(f'--cfg-options {key}={new}: in the config it is {wrong}')
    if isinstance(new, (list, tuple)) and any(isinstance(v, str) and v[:1] == '{' for v in new):
        raise InputError(
            f'--cfg-options {key}: write a list of dicts as Python does and in quotes, as in '
            f"""{key}="[{{'type': 'CrossEntropyLoss', 'loss_weight': 0.5}}]\""""
        )
