"""A config file: read, and built from, with one sentence for whatever is wrong with it."""

import os
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, List, Optional
from urllib.error import URLError

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS

from .command_line import TRACEBACK
from .config_overrides import as_typed, override
from .errors import InputError, one_line
from .shipped_configs import close_matches, config_files
from .utils import unwrapped


def load_config(
    path: str, options: Optional[dict] = None, launcher: str = 'none', needs: tuple = ('model',)
) -> Config:
    """Read a config file and put command line overrides into it.

    Args:
        path (str): Config file.
        options (dict, optional): Dotted keys to values.
        launcher (str): Value for `cfg.launcher`.
        needs (tuple[str]): Keys that the config must have.

    Raises:
        InputError: There is no such file (lists those with similar names), it isn't a config, or an
            override doesn't fit.
    """
    path = str(path)
    if os.path.isdir(path):
        raise InputError(f'the config {path!r} is a folder; name a file in it')
    if not os.path.isfile(path):
        matches = close_matches(path, {*Path(path).parent.glob('*.py'), *config_files()})
        hint = '\n  '.join(['; did you mean one of these?', *map(str, matches)]) if matches else ''
        raise InputError(f'there is no config file {path!r}{hint}')
    if Path(path).suffix not in ('.py', '.json', '.yaml', '.yml'):
        raise InputError(f'{path} is no config: its name must end in .py (or .json, .yaml, .yml)')
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # it is a program, and may fail in any way
        raise InputError(
            f'the config {path} can not be read: {type(error).__name__}: {one_line(error)}'
            f'{_line_in(error, path)}'
        ) from error
    missing = [key for key in needs if not cfg.get(key)]
    if missing:
        raise InputError(
            f'the config {path} has no {" and no ".join(missing)}; give the whole config of a '
            'segmentor, not a part of one'
        )
    if not isinstance(cfg.get('model', ConfigDict()), dict):
        raise InputError(f'model of the config {path} is a {type(cfg.model).__name__}, not a dict')
    cfg.launcher = launcher
    override(cfg, options, path)
    return cfg


def _line_in(error: BaseException, path: str) -> str:
    """', line N' where an error tells the line of a config."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f', line {error.lineno}'
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if os.path.basename(frame.filename) == os.path.basename(path)
    ]
    return f', line {lines[-1]}' if lines else ''


def type_name(kind: Any) -> str:
    """Name of a `type` in a config, which is a text, or in pure Python configs a class."""
    return kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))


def pretrained_weights(model: dict) -> List[tuple]:
    """Pretrained weights that a model's config names: (key below `model`, file or URL)."""
    found = []
    for prefix, node in (('', model), ('backbone.', model.get('backbone') or {})):
        init = node.get('init_cfg')
        for key, value in (
            ('pretrained', node.get('pretrained')),
            ('init_cfg', init.get('checkpoint') if isinstance(init, dict) else None),
        ):
            if value:
                found.append((f'{prefix}{key}', value))
    return found


def without_pretrained(model: dict) -> None:
    """Takes the pretrained weights out of a model's config, in place, as a checkpoint is loaded."""
    backbone = model.get('backbone') or {}
    for node in (model, backbone):
        if node.get('pretrained'):
            # timm's wrapper knows on and off only
            node['pretrained'] = False if isinstance(node['pretrained'], bool) else None
        if node.get('init_cfg'):
            node['init_cfg'] = None


class _Started(Hook):
    """Tells whether a run has come to its first batch."""

    started = False

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.started = True

    before_val_iter = before_test_iter = before_train_iter


@contextmanager
def setting_up(
    cfg: Config, path: str, options: Optional[dict] = None, runner: Optional[Runner] = None
) -> Iterator[None]:
    """Context manager that turns an error while building from a config into one sentence.

    Args:
        cfg (Config): The config.
        path (str): Its file.
        options (dict, optional): The overrides in it, for the message.
        runner (Runner, optional): The runner that the block runs. From its first batch on, errors
            are raised unchanged.

    Raises:
        InputError: Names the file, the error and where it occurred. With MMSEG_CMDL_TRACEBACK=1 in
            the environment the error is raised unchanged.
    """
    hook = _Started()
    if runner is not None:
        runner.register_hook(hook)
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        if hook.started:
            wrong = _wrong_channels(runner) if isinstance(error, (RuntimeError, IndexError)) else ''
            if not wrong:
                raise
            raise InputError(
                f'{path} does not fit its backbone: {wrong} ({one_line(error)})'
            ) from error
        raise InputError(_setup_message(cfg, path, options, error)) from error


@torch.no_grad()
def _wrong_channels(runner: Any) -> str:
    """The head that is built for other maps than the backbone gives, in a sentence, or nothing."""
    model = unwrapped(runner.model)
    image = torch.zeros(1, getattr(model.backbone, 'in_channels', 3), 64, 64)
    try:
        maps = model.eval().extract_feat(image.to(next(model.parameters())))
    except Exception:
        return ''  # it has another fault
    channels = [each.shape[1] for each in maps]
    for name, head in model.named_modules():
        indices: Any = getattr(head, 'in_index', None)
        built_for: Any = getattr(head, 'in_channels', None)
        if not isinstance(head, BaseDecodeHead) or indices is None:
            continue
        places = np.atleast_1d(indices)
        found = [channels[i] for i in places if -len(channels) <= i < len(channels)]
        # where maps are joined in_channels is their sum
        if len(found) < len(places) or sum(found) != np.sum(built_for):
            return (
                f'model.{name} has in_channels={built_for} and in_index={indices}, and the maps '
                f'of the backbone (after the neck) have {channels} channels'
            )
    return ''


def check_model(cfg: Config, path: str, options: Optional[dict] = None) -> None:
    """Builds the model once, to find mistakes early, and drops it.

    Raises:
        InputError: It can't be built.
    """
    init_default_scope(cfg.get('default_scope') or 'mmseg')
    with setting_up(cfg, path, options):
        MODELS.build(Config(dict(model=cfg.model)).model)


def _setup_message(cfg: Config, path: str, options: Optional[dict], error: Exception) -> str:
    if isinstance(error, URLError) or isinstance(error.__cause__, URLError):
        return _fetch_message(cfg, error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f'{error.filename}: {error.strerror} (while {path} was set up)'
    frame = traceback.extract_tb(error.__traceback__)[-1]
    given = f' and at {as_typed(options)}' if options else ''
    place = '/'.join(Path(frame.filename).parts[-3:])
    said = error.args[0] if isinstance(error, KeyError) and error.args else one_line(error)
    return (
        f'{path} can not be set up: {type(error).__name__}: {said} ({place}, line '
        f'{frame.lineno}). Look at the config{given}; {TRACEBACK}=1 in the environment shows the '
        'whole traceback'
    )


def _fetch_message(cfg: Config, error: Exception) -> str:
    weights = pretrained_weights(cfg.get('model') or {}) or [('', cfg.get('load_from') or 'a file')]
    names = ' and '.join(str(value) for _, value in weights)
    without = ' '.join(f'model.{key}=None' for key, _ in weights if key)
    first = weights[0][0] or 'pretrained'
    first += '.checkpoint' if first.endswith('init_cfg') else ''
    return (
        f'{names} can not be fetched ({one_line(error)}). Fetch the file where there is a network '
        f'and name it: --cfg-options model.{first}=FILE'
        + (f'; or start without: --cfg-options {without}' if without else '')
    )
