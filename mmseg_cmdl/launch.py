"""What the tools share: they find files, read configs, start ranks and make a home folder for mim.

A mistake raises an :class:`InputError` that names the file, option or key and says what to do. Most
mistakes are found before a model is built or a process group is started.
"""

import argparse
import ast
import atexit
import copy
import difflib
import inspect
import os
import re
import shutil
import tempfile
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterable, Iterator, List, Optional, Tuple
from urllib.error import URLError

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.runner import Runner, find_latest_checkpoint
from mmseg.registry import MODELS

from .checkpoint_file import is_local, read_checkpoint, read_state
from .command_line import TRACEBACK
from .errors import InputError
from .written_files import make_folder

PACKAGE = Path(__file__).resolve().parent


def configs_folder() -> Path:
    """Folder of the shipped configs: in the wheel, or beside the package in a checkout."""
    inside = PACKAGE / '.mim' / 'configs'
    return inside if inside.is_dir() else PACKAGE.parent / 'configs'


def config_files() -> List[Path]:
    """Files of all shipped configs, without the bases that they are made of."""
    return sorted(configs_folder().glob('[!_]*/*.py'))


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


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and testing have in common."""
    add_overrides(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes of a distributed run (default: %(default)s)',
    )
    # torch.distributed.launch passes the first spelling before PyTorch 2.0, the second one since.
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help='set by the launcher'
    )


def close_matches(path: str, files: Iterable[Path]) -> List[Path]:
    """Those of `files` with a name similar to that of `path`, at most five, the likest first.

    Names are similar that are spelt alike or hold the same words: config names are long, and one
    that is typed from memory is mostly too short.
    """
    wanted = Path(path).stem
    words = re.findall('[^_-]+', wanted)

    def likeness(file: Path) -> float:
        spelling = difflib.SequenceMatcher(None, wanted, file.stem).ratio()
        return max(spelling, sum(word in file.stem for word in words) / max(len(words), 1))

    ranked = sorted(files, key=lambda file: (-likeness(file), str(file)))
    return [file for file in ranked if likeness(file) >= 0.6][:5]


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


def check_model(cfg: Config, path: str, options: Optional[dict] = None) -> None:
    """Builds the model once, to find mistakes early, and drops it.

    Raises:
        InputError: It can't be built.
    """
    from mmengine.registry import init_default_scope

    init_default_scope(cfg.get('default_scope') or 'mmseg')
    with setting_up(cfg, path, options):
        MODELS.build(Config(dict(model=cfg.model)).model)


def as_typed(options: Optional[dict]) -> str:
    """Overrides as the words of a command line."""
    words = ' '.join(f'{key}={value}' for key, value in (options or {}).items())
    return f'--cfg-options {words}'.rstrip()


def one_line(error: BaseException, most: int = 300) -> str:
    """The message of an exception as one line; the last line of an error in a worker process."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any('Traceback' in line for line in lines):
        lines = lines[-1:]
    text = ' '.join(lines)
    return text if len(text) <= most else text[:most] + ' ...'


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


def type_name(kind: Any) -> str:
    """Name of a `type` in a config, which is a text, or in pure Python configs a class."""
    return kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))


def set_work_dir(cfg: Config, work_dir: Optional[str], config_path: str) -> None:
    """Set cfg.work_dir: the command line's, else the config's, else work_dirs/<config name>.

    Raises:
        InputError: The folder can't be made or written to.
    """
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = os.path.join('work_dirs', Path(config_path).stem)
    make_folder(cfg.work_dir)


def checked_checkpoint(path: str) -> str:
    """The path or URL of a checkpoint, after a check that a local file can be read.

    No code in the file is run, and tensors aren't loaded, so the check takes next to no time.

    Raises:
        InputError: A local file is missing (lists those beside it), or isn't a checkpoint.
    """
    path = str(path)
    if not is_local(path):
        return path
    if os.path.isfile(path):
        read_checkpoint(path)
        return path
    folder = Path(path) if os.path.isdir(path) else Path(path).parent
    beside = sorted(folder.glob('*.pth'), key=os.path.getmtime, reverse=True)[:5]
    hint = (
        f'; {folder} has:\n  ' + '\n  '.join(map(str, beside))
        if beside
        else f'; {folder} has no .pth file'
    )
    raise InputError(f'there is no checkpoint file {path!r}{hint}')


def latest_checkpoint(work_dir: str) -> Optional[str]:
    """The checkpoint to resume from in `work_dir`, None if nothing was saved there yet.

    The file `last_checkpoint` holds the absolute path at the time of saving. Where the folder has
    been moved since, the file of the same name in it is taken.

    Raises:
        InputError: The checkpoint named there is gone, or isn't one.
    """
    if not os.path.isfile(os.path.join(work_dir, 'last_checkpoint')):
        return None
    named = find_latest_checkpoint(work_dir)
    moved = os.path.join(work_dir, os.path.basename(named))
    return checked_checkpoint(moved if os.path.isfile(moved) else named)


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
        if hook.started or os.environ.get(TRACEBACK):
            raise
        raise InputError(_setup_message(cfg, path, options, error)) from error


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


def prepare_home() -> None:
    """Make the folder that `mim` wants, before several `mim` start side by side.

    openmim 0.3.9 makes ~/.cache/mim when it is imported. That fails if another process makes it at
    the same moment, and if the home folder is missing or can't be written to. In the latter case
    ``HOME`` becomes a temporary folder for this process and those it starts, until it ends.
    """
    home = os.path.expanduser('~')
    try:
        if not os.path.isabs(home):  # HOME is not set, and the user has no name
            raise FileNotFoundError(home)
        os.makedirs(os.path.join(home, '.cache', 'mim'), exist_ok=True)
    except OSError:
        os.environ['HOME'] = tempfile.mkdtemp(prefix='mmseg_cmdl_home_')
        atexit.register(shutil.rmtree, os.environ['HOME'], ignore_errors=True)
        os.makedirs(os.path.join(os.environ['HOME'], '.cache', 'mim'))


def take_up_seed(cfg: Config, checkpoint: str) -> None:
    """Give a resumed job that sets no seed the random seed of its first part.

    mmengine takes it from the checkpoint too, but only after the data loader has been built: the
    job would go on with images in another order and with other augmentation.
    """
    if cfg.get('randomness', {}).get('seed') is not None:
        return
    meta = read_state(checkpoint)[0].get('meta', {})
    if meta.get('seed') is not None:
        cfg.randomness = dict(cfg.get('randomness', {}), seed=meta['seed'])


def start_ranks(cfg: Config, local_rank: int = 0) -> None:
    """Set each rank's local number, and start the process group on a machine without a GPU.

    mmengine starts the group itself, but selects a CUDA device first and passes it to
    DistributedDataParallel, which fails with an obscure message on a machine without one. With the
    gloo backend everything else works there.

    Raises:
        InputError: The config wants NCCL on a machine without GPU, or the launcher's environment
            variables are missing.
    """
    os.environ.setdefault('LOCAL_RANK', str(local_rank))
    if cfg.launcher != 'pytorch' or get_device() not in ('cpu', 'mps'):
        return
    missing = [
        key for key in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT') if key not in os.environ
    ]
    if missing:
        raise InputError(
            f'--launcher pytorch needs {", ".join(missing)} in the environment; start it '
            'with tools/dist_train.sh, tools/dist_test.sh or torchrun'
        )
    dist_cfg = dict(cfg.get('env_cfg', {}).get('dist_cfg', {}))
    backend = dist_cfg.setdefault('backend', 'nccl')
    if backend == 'nccl':
        raise InputError(
            'the backend nccl needs a GPU and PyTorch sees none; for ranks on CPUs add '
            '--cfg-options env_cfg.dist_cfg.backend=gloo'
        )
    torch.distributed.init_process_group(**dist_cfg)
    wrapper = cfg.get('model_wrapper_cfg') or dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)


def finish_ranks() -> None:
    """Leave the process group, if there is one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
