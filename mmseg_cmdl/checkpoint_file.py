"""Checkpoints: found, read without running anything in them, and looked through.

PyTorch's weights-only check is left on (see :mod:`mmseg_cmdl.compat`), also on the maintained fork
of MMSegmentation, whose mmengine loads a file that this check refuses without it.
"""

import ast
import os
import pickle
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch
from mmengine.hooks import Hook
from mmengine.runner import CheckpointLoader, Runner, find_latest_checkpoint
from packaging.version import Version
from torch import Tensor, nn

from .errors import InputError, first_of
from .utils import unwrapped

# Before 2.6 the check knows no types of mmengine, and mmengine loads without it.
CHECKED = Version(torch.__version__) >= Version('2.6')
# What only some configs of this package have, and what without it is predicted otherwise.
OPTIONAL_PARTS = ('car', 'context', 'context_relation', 'fuse_context', 'downsample', 'pyramid')
# They have no part in a prediction.
ONLY_FOR_TRAINING = ('auxiliary_head', 'consistency', 'loss_decode', 'loss_coarse')


class OtherModelError(InputError):
    """A checkpoint that has nothing for parts of a model, or parts that the model has not."""

    exit_code = 1


def is_local(path: str) -> bool:
    """Whether it is a file of this machine, not a URL or one of mmengine's short names."""
    return '://' not in path


def read_checkpoint(path: str) -> dict:
    """Content of a checkpoint file; tensors stay in the file until they are used.

    Args:
        path (str): A local file.

    Raises:
        InputError: It can't be read, holds more than weights and plain data, or no weights.
    """
    path = str(path)
    if os.path.isdir(path):
        raise InputError(f'{path} is a folder, not a checkpoint file')
    if os.path.isfile(path) and not os.path.getsize(path):
        raise InputError(f'the checkpoint {path} is empty (0 bytes); copy or download it again')
    try:
        with open(path, 'rb') as file:
            is_zip = file.read(4) == b'PK\x03\x04'
        options = {'weights_only': True, 'mmap': is_zip} if CHECKED else {}
        content = torch.load(path, map_location='cpu', **options)
    except (FileNotFoundError, PermissionError) as error:
        raise InputError(f'the checkpoint {path} can not be read: {error.strerror}') from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f'the checkpoint {path} is refused: it is no file of torch.save, or holds more than '
            f'weights and plain data ({_reason(error)}); nothing in it was run'
        ) from error
    except Exception as error:  # whatever a broken file comes to
        raise InputError(
            f'the checkpoint {path} is cut off or is no file of torch.save '
            f'({type(error).__name__}: {_first_line(error)}); copy or download it again'
        ) from error
    state_of(content, path)
    return content


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


def has_checkpoint(work_dir: str) -> bool:
    """Whether a training has saved something in `work_dir`."""
    return os.path.isfile(os.path.join(work_dir, 'last_checkpoint'))


def latest_checkpoint(work_dir: str) -> Optional[str]:
    """The checkpoint to resume from in `work_dir`, None if nothing was saved there yet.

    The file `last_checkpoint` holds the absolute path at the time of saving. Where the folder has
    been moved since, the file of the same name in it is taken.

    Raises:
        InputError: The checkpoint named there is gone, or isn't one.
    """
    if not has_checkpoint(work_dir):
        return None
    named = find_latest_checkpoint(work_dir)
    moved = os.path.join(work_dir, os.path.basename(named))
    return checked_checkpoint(moved if os.path.isfile(moved) else named)


def read_state(path: str) -> Tuple[dict, Dict[str, Tensor]]:
    """Content and state dict of a checkpoint; a URL is fetched by mmengine.

    Raises:
        InputError: As :func:`read_checkpoint` does; or a URL can't be fetched.
    """
    path = str(path)
    if is_local(path):
        content = read_checkpoint(path)
    else:
        try:
            content = CheckpointLoader.load_checkpoint(path, map_location='cpu')
        except OSError as error:
            raise InputError(f'{path} can not be fetched ({error})') from error
    return content, state_of(content, path)


def load_state(model: nn.Module, path: str, remedy: str) -> dict:
    """Puts a checkpoint into a model, every part that predicts.

    Args:
        model (nn.Module): A segmentor.
        path (str): File or URL.
        remedy (str): What to do where the checkpoint is another model's.

    Returns:
        dict: The checkpoint's content.

    Raises:
        InputError: It can't be read, or is the checkpoint of another model.
    """
    content, state = read_state(path)
    refuse_other_model(model, state, path, remedy)
    model.load_state_dict(state, strict=False)
    return content


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), '')[:200]


def _reason(error: Exception) -> str:
    """What PyTorch says between its two paragraphs of advice."""
    text = str(error).partition('WeightsUnpickler error: ')[2] or str(error)
    text = text.split(' was not an allowed global')[0].split('Check the documentation')[0]
    return ' '.join(text.split())[:200].strip(' .')


def state_of(content: Any, path: str) -> Dict[str, Tensor]:
    """The state dict in a checkpoint's content, DistributedDataParallel's prefix taken off.

    Raises:
        InputError: There is none; says what there is.
    """
    state = content.get('state_dict', content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not any(map(torch.is_tensor, state.values())):
        found = (
            'the keys ' + ', '.join(map(str, list(content)[:5])) if isinstance(content, dict)
            else f'a {type(content).__name__}'
        )  # fmt: skip
        raise InputError(f'{path} holds no weights (state_dict), but {found}; give a checkpoint')
    return {str(key).removeprefix('module.'): value for key, value in state.items()}


def untrained_parts(model: nn.Module, state: Dict[str, Tensor]) -> List[str]:
    """Modules of a model that would predict as they were initialised, most general names first.

    Args:
        model (nn.Module): A segmentor.
        state (dict[str, Tensor]): State of a checkpoint.

    Returns:
        list[str]: Names down to the second level ('decode_head.bank'). What only training needs
        isn't among them, nor CAR's linear conv where it starts as the identity.
    """
    own = model.state_dict()
    missing = [
        key
        for key, value in own.items()
        if (key not in state or state[key].shape != value.shape) and _predicts(key)
    ]
    linear = getattr(getattr(model, 'car', None), 'linear', None)
    if linear is not None and 'car.linear.weight' in missing:
        weight = linear.weight.detach().flatten(1)
        if weight.shape[0] == weight.shape[1] and torch.equal(weight, torch.eye(len(weight))):
            missing = [key for key in missing if not key.startswith('car.linear.')]
    return _parts(missing)


def unused_parts(model: nn.Module, state: Dict[str, Tensor]) -> List[str]:
    """Parts of a checkpoint that the model hasn't got, and so predicts otherwise than trained.

    Args:
        model (nn.Module): A segmentor.
        state (dict[str, Tensor]): State of a checkpoint.

    Returns:
        list[str]: Names down to the second level ('decode_head.context'), of the parts that configs
        of this package have or leave out. Of others nobody can tell what they are for; mmengine
        names them in the log.
    """
    own = model.state_dict()
    unknown = [key for key in state if key not in own and _predicts(key)]
    return _parts([key for key in unknown if set(OPTIONAL_PARTS) & set(key.split('.')[:2])])


def _predicts(key: str) -> bool:
    """Whether an entry of a state dict has a part in a prediction."""
    counts = key.endswith('num_batches_tracked')  # which old checkpoints haven't got
    return not counts and not set(ONLY_FOR_TRAINING) & set(key.split('.'))


def _parts(keys: List[str]) -> List[str]:
    return list(dict.fromkeys('.'.join(key.split('.')[:2]) for key in keys))


def refuse_other_model(model: nn.Module, state: Dict[str, Tensor], path: str, remedy: str) -> None:
    """Raise where :func:`untrained_parts` or :func:`unused_parts` finds any.

    Raises:
        OtherModelError: Names the parts and the file.
    """
    untrained, unused = untrained_parts(model, state), unused_parts(model, state)
    if untrained:
        raise OtherModelError(
            f'{path} has nothing, or nothing of the same size, for {first_of(untrained, 8)} of the '
            f'model: it is the checkpoint of another config. {remedy}'
        )
    if unused:
        car = any(part.startswith('car.') for part in unused)
        raise OtherModelError(
            f'{path} has {first_of(unused, 8)}, which the model has not, and without which it '
            'predicts otherwise than it was trained: it is the checkpoint of another config. '
            + remedy
            + ('. Or fold CAR into the plain model with tools/fold_car.py' if car else '')
        )


class SameModelHook(Hook):
    """Refuses the checkpoint of another model than the runner's.

    Args:
        path (str): What the checkpoint is called in the message.
        allow (bool): Only say so. Defaults to False.
    """

    def __init__(self, path: str, allow: bool = False):
        self.path, self.allow = path, allow

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Called between loading and the first batch.

        Raises:
            OtherModelError: Names the parts.
        """
        try:
            refuse_other_model(
                unwrapped(runner.model),
                state_of(checkpoint, self.path),
                self.path,
                'Give the config that it was trained with, or pass --allow-missing to test the '
                'model nevertheless, with parts as they were initialised',
            )
        except OtherModelError as error:
            if not self.allow:
                raise
            runner.logger.warning(f'--allow-missing: {error}')


class StoredConfigHook(Hook):
    """Keeps mmengine from running the config text of a checkpoint.

    `Runner.resume` parses `meta['config']` as a Python config, which executes it, for the one
    value `gpu_ids`. It is read as a literal here and is all that is left of the text.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Called between loading and parsing."""
        meta = checkpoint.get('meta')
        if isinstance(meta, dict) and 'config' in meta:
            meta['config'] = f'gpu_ids = {literal_gpu_ids(meta["config"])!r}'


def literal_gpu_ids(text: str) -> List[int]:
    """`gpu_ids` of a config's text, if it is a list of numbers; parsed, not run."""
    try:
        tree = ast.parse(text)
        for node in tree.body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == 'gpu_ids':
                value = ast.literal_eval(node.value)
                return [n for n in value if type(n) is int]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        pass
    return []
