"""The plan of a study: its arms, each a whole config, and what a folder may be gone on with."""

import copy
import hashlib
import json
import logging
import re
import shlex
from pathlib import Path
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple, Union

import mmengine
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from ..config_overrides import override, parse_override
from ..errors import InputError, one_line
from ..models.decode_heads.dataset_context_head import DatasetContextHead
from ..models.decode_heads.mcibi_head import MCIBIHead
from ..models.decode_heads.mdrl_head import MDRLHead
from ..models.decode_heads.single_image_context import options_of
from ..utils import as_list, registered_class
from ..version import __version__
from ..written_files import written_beside
from . import controls as _controls  # noqa: F401  registers them

#: What the method 'car' makes of a segmentor.
SEGMENTORS = {
    'EncoderDecoder': 'CAREncoderDecoder',
    'CascadeEncoderDecoder': 'CARCascadeEncoderDecoder',
}
RECORDER, CONTROLS = 'mmseg_cmdl.study.recorder', 'mmseg_cmdl.study.controls'
#: Keys, at any depth, that may differ between the machines of one study.
OF_THE_MACHINE = frozenset(
    (
        *('data_root', 'work_dir', 'launcher', 'resume', 'env_cfg', 'custom_imports'),
        *('num_workers', 'persistent_workers', 'prefetch_factor', 'pin_memory'),
        *('visualizer', 'vis_backends', 'log_level', 'log_processor'),
    )
)
#: Settings of a schedule that count iterations.
_COUNTS = ('begin', 'end', 'T_max', 'step_size', 'total_iters', 'total_steps', 'milestones')
#: What only FCNHead has; a head that takes its place has layers of its own.
_FCN_OPTIONS = ('num_convs', 'kernel_size', 'concat_input', 'dilation')
#: Names of methods in the files of configs, where that of the head is another.
_NAMES_OF_CONFIGS = {'mcibipp': 'mcibiplusplus'}
_NAME = re.compile(r'[A-Za-z0-9][\w.+@~-]*')


class Arm(NamedTuple):
    """What is trained with every seed."""

    name: str
    config: Config  # whole, but for the seed
    fingerprint: str
    control_of: Optional[str] = None


class StudyError(ValueError):
    """A plan that can't be carried out; the message names what to change."""


def short_name(kind: Any) -> str:
    """What a head is called on the command line: 'fcn' for FCNHead."""
    return str(kind).rsplit('.', 1)[-1].lower().replace('head', '')


def head_of(cfg: Config) -> ConfigDict:
    """Config of the decode head, the last one of a cascade."""
    head = cfg.model.decode_head
    return head[-1] if isinstance(head, (list, tuple)) else head


def class_of(kind: str) -> Optional[type]:
    """The registered decode head of that name: MDRLHead for 'mdrl', 'MDRL' or 'MDRLHead'.

    'mcibipp', as the configs call MCIBI++, is MCIBIPlusPlusHead.
    """
    name = _NAMES_OF_CONFIGS.get(kind.lower(), kind.lower())
    wanted = {name, f'{name}head'}
    for name, cls in MODELS.module_dict.items():
        if name.lower() in wanted and name.endswith('Head'):
            return cls
    return None


def apply_method(cfg: Config, method: str) -> None:
    """Puts a method into a config: the one-line changes of the README.

    Args:
        cfg (Config): Changed in place.
        method (str): Terms joined by '+': a registered decode head, by the name of its class with
            or without 'Head', and 'car'. A head that takes a context keeps the config's head as
            such, unless that is FCNHead; '@' names another, as in 'mdrl@nl', or none: 'mdrl@none'.

    Raises:
        StudyError: There is no such method, or it doesn't fit the config.
    """
    heads = 0
    for term in method.split('+'):
        if term == 'car':
            _apply_car(cfg)
            continue
        heads += 1
        if heads > 1:
            raise StudyError(f'method {method!r} names two heads')
        kind, _, context = term.partition('@')
        _apply_head(cfg, kind, context or None, method)


def _apply_car(cfg: Config) -> None:
    kind = str(cfg.model.type).rsplit('.', 1)[-1]
    if kind not in SEGMENTORS:
        raise StudyError(
            f'method car is for {" and ".join(SEGMENTORS)}, but model.type is {kind}; give the '
            "arm as a config of its own: --arm 'car: path/to/config.py'"
        )
    cfg.model.type = SEGMENTORS[kind]


def _apply_head(cfg: Config, kind: str, context: Optional[str], method: str) -> None:
    head = head_of(cfg)
    before = str(head.type).rsplit('.', 1)[-1]
    found = [class_of(name) for name in (kind, context) if name not in (None, 'none')]
    if None in found:
        raise StudyError(
            f'there is no method {method!r}: it is car, a registered decode head such as mdrl, '
            f"mcibi, dgcw or psp, two joined by '+', or {short_name(before)!r} or 'baseline' for "
            'the config as it is'
        )
    new = found[0].__name__
    if before == 'FCNHead':
        for option in _FCN_OPTIONS:
            head.pop(option, None)
    if context is not None:
        _leave_out_old_head(head, found)
    if context == 'none':
        head.pop('context', None)
        if isinstance(head.get('in_channels'), (list, tuple)):  # of a decoder that takes them all
            head.update(in_channels=head.in_channels[-1], in_index=head.get('in_index', [-1])[-1])
            head.pop('input_transform', None)
    if 'context' in options_of(found[0]):
        if context not in (None, 'none'):
            head.context = dict(type=found[1].__name__)
        elif context is None and before != 'FCNHead':
            head.context = dict(type=before)
    elif context is not None:
        raise StudyError(f'method {method!r}: {new} takes no context')
    head.type = new
    if new == 'DGCWHead':
        head.update(channels=min(128, head.get('channels', 128)), concat_input=False)


def _leave_out_old_head(head: ConfigDict, found: Sequence[type]) -> None:
    """Takes off the options of the head that was there, which isn't kept as the context.

    Args:
        head (ConfigDict): Changed in place; `type` is still that of the old head.
        found (Sequence[type]): The new head and its context, whose options stay.
    """
    old = class_of(str(head.type).rsplit('.', 1)[-1])
    if old is None:
        return
    for option in options_of(old).difference(*map(options_of, found)):
        head.pop(option, None)
    if old is not found[0]:
        head.pop('bank', None)  # of another kind


def shorten(cfg: Config, iters: int) -> None:
    """Makes the training `iters` iterations long, with its schedule, validations and checkpoints.

    Raises:
        StudyError: The config counts in epochs.
    """
    total = cfg.train_cfg.get('max_iters')
    if not total:
        raise StudyError(
            '--iters is for configs that count in iterations, and train_cfg of this one has no '
            'max_iters; set train_cfg.max_epochs by --cfg-options'
        )

    def scaled(count: Any) -> Any:
        if isinstance(count, (list, tuple)):
            return [scaled(item) for item in count]
        return max(1, round(count * iters / total)) if count else count

    cfg.train_cfg.max_iters = iters
    cfg.train_cfg.val_interval = scaled(cfg.train_cfg.get('val_interval', 1000))
    for schedule in as_list(cfg.get('param_scheduler')):
        if schedule.get('by_epoch', True) is False:
            for key in _COUNTS:
                if schedule.get(key) is not None:
                    schedule[key] = scaled(schedule[key])
    checkpoint = cfg.get('default_hooks', {}).get('checkpoint')
    if checkpoint and checkpoint.get('interval', -1) > 0:
        checkpoint.interval = scaled(checkpoint.interval)


def parse_arm(text: str) -> Tuple[str, Optional[str], List[str]]:
    """'NAME: [METHOD | CONFIG.py] [KEY=VALUE ...]' into its parts.

    Raises:
        StudyError: It isn't of that form.
    """
    name, colon, rest = text.partition(':')
    words = shlex.split(rest)
    if not colon or not words or any('=' not in word for word in words[1:]):
        raise StudyError(
            f"--arm {text!r} must read 'NAME: [METHOD or CONFIG.py] [KEY=VALUE ...]', such as "
            "'mdrl-n3: mdrl model.decode_head.bank.num_distributions=3'"
        )
    base = words.pop(0) if '=' not in words[0] else None
    return name.strip(), base, words


def load(
    path: Union[str, Path], options: Optional[dict] = None, iters: Optional[int] = None
) -> Config:
    """A config with what holds for all arms alike."""
    # through plain types, so that one written in the lazy style is treated as any other
    cfg = Config(Config.fromfile(str(path)).to_dict())
    if iters is not None:
        shorten(cfg, iters)
    override(cfg, options, str(path))
    for key in ('model', 'train_cfg', 'val_evaluator', 'val_dataloader'):
        if not cfg.get(key):
            raise StudyError(f'{path} has no {key}; a study trains and validates')
    return cfg


def resolve(
    config: Union[str, Path],
    methods: Sequence[str] = (),
    arms: Sequence[str] = (),
    options: Optional[dict] = None,
    iters: Optional[int] = None,
    results: Union[str, Path] = 'results',
    precise_bn: int = 0,
    controls: Optional[Sequence[str]] = None,
) -> List[Arm]:
    """All arms, the baseline first.

    Args:
        config (str | Path): The baseline's.
        methods (Sequence[str]): See :func:`apply_method`.
        arms (Sequence[str]): See :func:`parse_arm`.
        options (dict, optional): Settings of all arms.
        iters (int, optional): Iterations of all arms; None for those of the config.
        results (str | Path): Folder of the result files.
        precise_bn (int): See :class:`~mmseg_cmdl.study.recorder.StudyRecorder`.
        controls (Sequence[str], optional): Arms to add controls of, see :func:`as_control`; none
            named: all whose head has a memory. None adds none.

    Raises:
        StudyError: Two arms have one name, or one of them can't be built.
    """
    names = {'baseline', short_name(head_of(load(config)).type)}
    baseline = next((method for method in methods if method in names), min(names - {'baseline'}))
    wanted: List[Tuple[str, Optional[str], List[str]]] = [(baseline, None, [])]
    wanted += [(method, method, []) for method in methods if method not in names]
    wanted += [parse_arm(text) for text in arms]
    configs: Dict[str, Config] = {}
    control_of: Dict[str, str] = {}
    for name, base, words in wanted:
        if not _NAME.fullmatch(name):
            raise StudyError(f'arm {name!r}: a name is of letters, digits and . _ + @ ~ -')
        if name.lower() in map(str.lower, configs):
            raise StudyError(f'two arms are called {name!r}')
        of_its_own = base is not None and base.endswith('.py')
        path = str(base if of_its_own else config)
        cfg = load(path, options, iters)
        method = None if of_its_own or base in names else base
        if method is not None:
            apply_method(cfg, method)
        try:
            override(cfg, dict(map(parse_override, words)), path)
        except InputError as error:
            raise StudyError(f'settings of arm {name!r}: {error}') from None
        if method is not None:
            _check_heads(name, cfg)
        configs[name] = cfg
    for name in with_controls(configs, controls):
        for kind in ('pixels', 'learned'):
            control_of[f'{name}~{kind}'] = name
            configs[f'{name}~{kind}'] = as_control(configs[name], kind)
    out = []
    for name, cfg in configs.items():
        fingerprint = fingerprint_of(cfg, precise_bn)
        add_recorder(cfg, name, results, fingerprint, precise_bn)
        out.append(Arm(name, cfg, fingerprint, control_of.get(name)))
    return out


def _check_heads(name: str, cfg: Config) -> None:
    """Builds the decode heads that a method has changed, and forgets them.

    A segmentor of the user's own may complete their options, so it is left to the job.

    Raises:
        StudyError: One can't be built; what the head says of it.
    """
    init_default_scope(cfg.get('default_scope') or 'mmseg')
    segmentor = registered_class(cfg.model)
    if segmentor is None or not segmentor.__module__.startswith(('mmseg.', 'mmseg_cmdl.')):
        return
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)  # the job's log says what was placed where
    try:
        for head in as_list(cfg.model.decode_head):
            MODELS.build(copy.deepcopy(head))
    except Exception as error:
        raise StudyError(f'arm {name!r} can not be built: {one_line(error)}') from error
    finally:
        logger.setLevel(level)


def with_controls(configs: Dict[str, Config], wanted: Optional[Sequence[str]]) -> List[str]:
    """Arms that controls are to be made of.

    Raises:
        StudyError: An arm that is named isn't there or has no memory.
    """
    if wanted is None:
        return []
    memory = [name for name, cfg in configs.items() if _has_memory(head_of(cfg).type)]
    for name in wanted:
        if name not in memory:
            raise StudyError(
                f'--controls {name}: no arm of that name has the memory of MDRLHead or MCIBIHead; '
                f'those that have: {", ".join(memory) or "none"}'
            )
    return list(wanted) or memory


def _has_memory(kind: Any) -> bool:
    cls = class_of(str(kind).rsplit('.', 1)[-1])
    return cls is not None and issubclass(cls, (MDRLHead, MCIBIHead))


def as_control(cfg: Config, kind: str) -> Config:
    """The same config with a memory head's modules, and without its memory.

    Args:
        cfg (Config): Config of the arm.
        kind (str): 'pixels': the relation attends to the pixels themselves; 'learned': class
            vectors learned by gradient, of the bank's shape, stand in the place of the memory.
    """
    cfg = Config(copy.deepcopy(cfg.to_dict()))
    init_default_scope('mmseg')
    head = head_of(cfg)
    built = MODELS.build(head)
    # what the memory head adds to what all of them have: its bank and the losses that train it
    for option in options_of(type(built)) - options_of(DatasetContextHead):
        head.pop(option, None)
    if kind == 'pixels':
        head.type = 'PixelControlHead'
    else:
        head.type = 'LearnedControlHead'
        head.vectors = tuple(built.bank.class_vectors().shape[1:])
        head.fuse = hasattr(built, 'fuse_memory')
    _add_imports(cfg, 'mmseg_cmdl', CONTROLS)
    return cfg


def _add_imports(cfg: Config, *modules: str) -> None:
    """Adds modules to `custom_imports` that aren't there."""
    imports = cfg.get('custom_imports') or {}
    names = imports.get('imports') or []
    names = [names] if isinstance(names, str) else names
    cfg.custom_imports = dict(
        imports=list(dict.fromkeys([*names, *modules])),
        allow_failed_imports=imports.get('allow_failed_imports', False),
    )


def add_recorder(
    cfg: Config, arm: str, results: Union[str, Path], fingerprint: str, precise_bn: int = 0
) -> None:
    """What the study adds to a job: it records, keeps one checkpoint, and repeats after a stop."""
    _add_imports(cfg, 'mmseg_cmdl', RECORDER)
    evaluators = as_list(cfg.val_evaluator)
    ignored = next(
        (e['ignore_index'] for e in evaluators if e.get('ignore_index') is not None), 255
    )
    cfg.val_evaluator = [*evaluators, dict(type='StudyMetric', ignore_index=ignored)]
    hooks = list(cfg.get('custom_hooks') or [])
    default = [hook for hook in (cfg.get('default_hooks') or {}).values() if hook]
    if all(hook.get('type') != 'SeedPerIterationHook' for hook in [*default, *hooks]):
        hooks.append(dict(type='SeedPerIterationHook'))
    cfg.custom_hooks = [
        *hooks,
        dict(
            type='StudyRecorder',
            arm=arm,
            results=str(Path(results).resolve()),
            fingerprint=fingerprint,
            precise_bn=precise_bn,
        ),
    ]
    hooks = cfg.setdefault('default_hooks', {})
    checkpoint = hooks.get('checkpoint') or dict(
        type='CheckpointHook', by_epoch='max_iters' not in cfg.train_cfg
    )
    hooks['checkpoint'] = {**checkpoint, 'max_keep_ckpts': 1, 'save_best': None}


def comparable(cfg: Config) -> dict:
    """A config as plain values, without what belongs to the machine."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(k): plain(v) for k, v in sorted(value.items()) if k not in OF_THE_MACHINE}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)

    # the parts that a training is built from; a config file's other names only lead to them
    parts = (
        'model train_dataloader val_dataloader val_evaluator train_cfg val_cfg optim_wrapper '
        'param_scheduler default_hooks custom_hooks load_from auto_scale_lr default_scope'
    )
    out = plain({key: cfg[key] for key in parts.split() if cfg.get(key) is not None})
    # what only writes or draws
    for hook in ('logger', 'visualization', 'timer', 'checkpoint'):
        out.get('default_hooks', {}).pop(hook, None)
    return out


def fingerprint_of(cfg: Config, precise_bn: int = 0) -> str:
    """12 hexadecimal digits that are equal for an equal :func:`comparable` config."""
    text = json.dumps([comparable(cfg), precise_bn], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def flatten(value: Any, prefix: str = '') -> Dict[str, object]:
    """{'model.decode_head.channels': 64, ...}."""
    if isinstance(value, dict):
        items: Iterable = value.items()
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        items = enumerate(value)
    else:
        return {prefix[:-1]: value}
    return {k: v for key, item in items for k, v in flatten(item, f'{prefix}{key}.').items()}


def differences(old: dict, new: dict) -> Dict[str, list]:
    """{key: [old, new]} of two :func:`comparable` configs; None where a key is missing."""
    old, new = flatten(old), flatten(new)
    keys = [*old, *(key for key in new if key not in old)]
    return {key: [old.get(key), new.get(key)] for key in keys if old.get(key) != new.get(key)}


def _settings(arms: Sequence[Arm], precise_bn: int) -> dict:
    """What plan.json holds."""
    configs = [comparable(arm.config) for arm in arms]
    for cfg in configs:
        for key in ('custom_hooks', 'val_evaluator'):
            cfg[key] = [item for item in cfg[key] if item.get('type') not in _OURS]
    base = configs[0]
    return dict(
        format=1,
        mmseg_cmdl=__version__,
        precise_bn=precise_bn,
        baseline=arms[0].name,
        arms={
            arm.name: dict(
                fingerprint=arm.fingerprint,
                control_of=arm.control_of,
                changes={key: new for key, (_, new) in differences(base, cfg).items()},
            )
            for arm, cfg in zip(arms, configs)
        },
        config=base,
    )


def command_line(words: Sequence[str]) -> str:
    """A command as it was given, without settings and folders that belong to the machine."""
    kept = [w for w in words if w.partition('=')[0].split('.')[-1] not in OF_THE_MACHINE]
    return shlex.join(_ABSOLUTE.sub('', word) for word in kept)


#: Folders of an absolute path, whose last part stays.
_ABSOLUTE = re.compile(r"(?:^|(?<=[\s=:'\"]))/(?:[^\s/'\"]+/)*(?=[^\s/'\"])")
_OURS = ('StudyMetric', 'StudyRecorder', 'SeedPerIterationHook')


def merge(
    folder: Path, arms: Sequence[Arm], precise_bn: int = 0, command: Optional[str] = None
) -> dict:
    """The plan that the folder has with these arms, after a check of what the folder holds.

    Arms of the folder that this plan doesn't name are kept. Nothing is written.

    Raises:
        StudyError: The folder was made with another baseline, or another arm of the same name.
    """
    new, path = _settings(arms, precise_bn), folder / 'plan.json'
    new['commands'] = [command] if command else []
    if path.is_file():
        old = mmengine.load(path)
        found = differences(old['config'], new['config'])
        if old['precise_bn'] != precise_bn:
            found['--precise-bn'] = [old['precise_bn'], precise_bn]
        if old['baseline'] != new['baseline']:
            found['name of the baseline'] = [old['baseline'], new['baseline']]
        _refuse(found, f'{folder} was made with another config')
        for name, arm in new['arms'].items():
            if name in old['arms']:
                found = differences(old['arms'][name]['changes'], arm['changes'])
                _refuse(found, f'{folder} has another arm called {name!r}')
        new['arms'] = {**old['arms'], **new['arms']}
        new['commands'] = [c for c in old.get('commands', []) if c != command] + new['commands']
    return new


def save(
    folder: Path, arms: Sequence[Arm], precise_bn: int = 0, command: Optional[str] = None
) -> dict:
    """Writes plan.json and the arms' configs; see :func:`merge`, whose result it returns."""
    new = merge(folder, arms, precise_bn, command)
    (folder / 'configs').mkdir(parents=True, exist_ok=True)
    for arm in arms:
        arm.config.dump(str(folder / 'configs' / f'{arm.name}.py'))
    write_json(folder / 'plan.json', new)
    return new


def _refuse(found: Dict[str, list], message: str) -> None:
    if found:
        lines = [f'  {key}: {old!r} there, {new!r} now' for key, (old, new) in found.items()]
        lines = lines[:20] + [f'  and {len(lines) - 20} more'] * (len(lines) > 20)
        raise StudyError(
            '\n'.join([message + ':', *lines, 'Take another --work-dir, or the settings of before'])
        )


def write_json(path: Path, value: dict) -> None:
    """Writes it whole or not at all, a line for each key."""
    lines = ',\n'.join(
        f'{json.dumps(key)}: {json.dumps(item, allow_nan=False)}' for key, item in value.items()
    )
    with written_beside(path) as unfinished:
        unfinished.write_text(f'{{\n{lines}\n}}\n', encoding='utf-8')
