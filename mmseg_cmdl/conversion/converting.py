"""A released checkpoint file to one for a config of this package."""

from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, MODELS
from torch.overrides import TorchFunctionMode

from ..config_file import load_config, setting_up
from ..dataset_building import leaves
from ..written_files import refuse_same, written_beside
from .released_models import RELEASED, ReleasedModel, dataset_meta, differences, read_fact
from .state_dicts import (
    HEAD,
    MEMORY,
    PROTOTYPES,
    ConversionError,
    State,
    check_fit,
    convert_state,
    read_state,
)

# what decides the function and only a table or the user can say
UNKNOWABLE = (
    'data_preprocessor.mean',
    'data_preprocessor.std',
    'data_preprocessor.bgr_to_rgb',
    'backbone.type',
    'backbone.strides',
    'backbone.dilations',
    'decode_head.act_cfg',
    'decode_head.align_corners',
    'decode_head.context.dilations',
    'decode_head.context.pool_scales',
    'decode_head.hard_aggregate',
    'decode_head.weights_from',
    'decode_head.norm_axis',
    'eps of batch norm',
)
# of the released models in the sssegmentation toolbox
TOOLBOX_HEADS = ('MCIBIHead', 'MCIBIPlusPlusHead')


class Conversion(NamedTuple):
    """The result of a conversion.

    Attributes:
        state (dict[str, Tensor]): What was written.
        model (str, optional): Name of the released model; None if it isn't known.
        changed (dict): Settings that --out-config changed, by their key in `model`.
        notes (list[str]): What the user should know.
    """

    state: State
    model: Optional[str]
    changed: Dict[str, Any]
    notes: List[str]


class _ScalarsOnCPU(TorchFunctionMode):
    """Inside `torch.device('meta')`: a transformer reads its drop rates from a `linspace`."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: Optional[dict] = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs.setdefault('device', 'cpu')
        return func(*args, **kwargs)


def build_without_memory(cfg: Config) -> BaseModule:
    """The model of a config, its parameters on the meta device and no pretrained file read."""
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    model = cfg.model.copy()
    model.pretrained = None
    with torch.device('meta'), _ScalarsOnCPU():
        built = MODELS.build(model)
    # what the images are normalised with, which has no memory there
    preprocessor = model.get('data_preprocessor')
    if preprocessor is not None:
        built.data_preprocessor = MODELS.build(preprocessor)
    return built


def recognise(source: str, model: Optional[str] = None) -> Optional[str]:
    """Name of the released model, as given or as the file is called; None if there is none.

    Raises:
        ConversionError: No released model has the name that was given.
    """
    if model is not None:
        if model not in RELEASED:
            raise ConversionError(
                f'--model {model} is none of the released models: {", ".join(sorted(RELEASED))}'
            )
        return model
    name = Path(source).name.partition('.')[0]
    return name if name in RELEASED else None


def widths(released: State, built: BaseModule) -> Dict[str, int]:
    """Numbers that the tensors decide, where the model of the config has another.

    Args:
        released (dict[str, Tensor]): Under the released names.
        built (BaseModule): Model of the config.

    Returns:
        dict[str, int]: By their key in `model`.
    """
    head = built.decode_head
    found = {
        'ProtoSegHead': _widths_of_proto_seg,
        'MCIBIPlusPlusHead': _widths_of_plus_plus,
    }.get(type(head).__name__, _widths_of_memory)(released, head)
    num_classes = _size(released, MEMORY)
    auxiliary = getattr(built, 'auxiliary_head', None)
    parts = {} if auxiliary is None else {'': auxiliary}
    if isinstance(auxiliary, torch.nn.ModuleList):
        parts = {f'.{index}': part for index, part in enumerate(auxiliary)}
    for place, part in parts.items():
        theirs = _size(released, f'auxiliary_decoder{place}.0.weight')
        found[f'auxiliary_head{place}.channels'] = (theirs, part.channels)
        found[f'auxiliary_head{place}.num_classes'] = (num_classes, part.num_classes)
    return {key: theirs for key, (theirs, ours) in found.items() if theirs not in (None, ours)}


def _size(released: State, key: str, axis: int = 0) -> Optional[int]:
    return released[key].shape[axis] if key in released else None


def _widths_of_memory(released: State, head: BaseModule) -> Dict[str, Tuple[Any, Any]]:
    """By key: what the checkpoint has, or None, and what the head has."""
    relation = 'memory_module.attention.out_project.0.weight'
    if relation not in released:
        relation = 'memory_module.self_attention.out_project.0.weight'
    found = {
        f'{HEAD}.channels': (_size(released, 'bottleneck.0.weight'), head.channels),
        f'{HEAD}.transform_channels': (
            _size(released, relation, 1),
            head.relation.out_project.conv.in_channels,
        ),
        f'{HEAD}.num_classes': (_size(released, MEMORY), head.num_classes),
    }
    if hasattr(head.bank, 'num_distributions'):
        found[f'{HEAD}.bank.num_distributions'] = (
            _size(released, MEMORY, 1),
            head.bank.num_distributions,
        )
    return found


def _widths_of_plus_plus(released: State, head: BaseModule) -> Dict[str, Tuple[Any, Any]]:
    """As :func:`_widths_of_memory`, with the layers that a model of MCIBI++ may have."""
    found = _widths_of_memory(released, head)
    branch = head.has_context_branch
    for name, decoder, conv in (
        ('coarse', 'pr', head.coarse_classifier[0]),
        ('context', 'cwi', head.context_classifier[0] if branch else None),
        ('final', 'cls', head.final_conv),
    ):
        if conv is not None:
            found[f'{HEAD}.{name}_kernel_size'] = (
                _size(released, f'decoder_{decoder}.conv1.weight', 2),
                conv.kernel_size[0],
            )
    found[f'{HEAD}.downsample_before_sa'] = (
        'memory_module.downsample_before_sa.0.weight' in released,
        head.downsample is not None,
    )
    if branch:
        found[f'{HEAD}.relate_context'] = (
            'self_attention.out_project.0.weight' in released,
            head.context_relation is not None,
        )
    if head.pyramid is not None:
        found[f'{HEAD}.pyramid.out_channels'] = (
            _size(released, 'fpn_convs.0.0.weight'),
            head.pyramid.fpn_convs[0].out_channels,
        )
    return found


def _widths_of_proto_seg(released: State, head: BaseModule) -> Dict[str, Tuple[Any, Any]]:
    """As :func:`_widths_of_memory`."""
    return {
        f'{HEAD}.channels': (_size(released, 'cls_head.0.weight'), head.channels),
        f'{HEAD}.num_classes': (_size(released, PROTOTYPES), head.num_classes),
        f'{HEAD}.bank.num_distributions': (
            _size(released, PROTOTYPES, 1),
            head.bank.num_distributions,
        ),
    }


def _describe(settings: Dict[str, Any]) -> str:
    return '; '.join(f'{key}={value!r}' for key, value in settings.items())


def _classes_of(cfg: Config) -> Optional[str]:
    """Name of the data set that the config trains on; None if it has none."""
    loader = cfg.get('train_dataloader') or cfg.get('test_dataloader')
    return None if loader is None else next(leaves(loader.dataset)).get('type')


def _merge(cfg: Config, settings: Dict[str, Any]) -> None:
    cfg.merge_from_dict({f'model.{key}': value for key, value in settings.items()})


def fit_config(
    cfg: Config, released: State, known: Optional[ReleasedModel], change: bool
) -> Tuple[BaseModule, Dict[str, Any]]:
    """The model that the checkpoint fits, and what of the config had to be changed for it.

    Args:
        cfg (Config): Changed in place where it may be.
        released (dict[str, Tensor]): Under the released names.
        known (ReleasedModel, optional): What is known of the model besides.
        change (bool): Whether the config may be changed.

    Raises:
        ConversionError: The config differs and must not be changed, or can't be by settings alone.
    """
    built = build_without_memory(cfg)
    wrong = widths(released, built)
    if wrong and change:
        _merge(cfg, wrong)
        built = build_without_memory(cfg)
    elif wrong:
        raise ConversionError(
            f'the checkpoint has {_describe(wrong)}, which the config sets otherwise. Set it with '
            '--cfg-options, each under model., or let --out-config FILE write the config that fits'
        )
    if known is None:
        return built, wrong
    different = differences(built, known)
    if not different:
        return built, wrong
    theirs = {key: known.facts[key] for key in different}
    if not change:
        raise ConversionError(
            f'the released model has {_describe(theirs)}, the model of the config '
            f'{_describe(different)}. No tensor of the checkpoint shows this, but the predictions '
            f'would differ. Use {known.config}.py, set it with --cfg-options, each under model., '
            'or let --out-config FILE write the config that fits'
        )
    if f'{HEAD}.context.type' in theirs:  # another context has other options
        of_context = {
            key.rpartition('.')[2]: value
            for key, value in known.facts.items()
            if key.startswith(f'{HEAD}.context.')
        }
        cfg.model.decode_head.context = of_context
    _merge(cfg, {key: value for key, value in theirs.items() if not key.startswith('eps of ')})
    built = build_without_memory(cfg)
    still = differences(built, known)
    if still:
        raise ConversionError(
            f'the released model has {_describe(theirs)}, and settings alone can not make '
            f'this config the same; use {known.config}.py'
        )
    return built, {**wrong, **theirs}


def _drop_unused_norm(state: State, built: BaseModule, notes: List[str]) -> None:
    """CMDL's norm over classes belongs to the loss that has one; predictions don't need it."""
    prefix = f'{HEAD}.consistency.losses.0.norm.'
    norms = [key for key in state if key.startswith(prefix)]
    expected = built.state_dict()
    if not norms or norms[0] in expected:
        return
    for key in norms:
        del state[key]
    notes.append(
        'mask_norm was left out: no loss of the config has a LayerNorm over classes (formulation='
        "'released'); predictions don't depend on it"
    )


def convert(
    config: str,
    source: str,
    target: str,
    head: Union[str, Sequence[str]] = TOOLBOX_HEADS,
    model: Optional[str] = None,
    cfg_options: Optional[Dict[str, Any]] = None,
    out_config: Optional[str] = None,
) -> Conversion:
    """Convert a file.

    Args:
        config (str): Config of this package for the same model.
        source (str): Released checkpoint.
        target (str): File to write, with the names of the classes in its `dataset_meta`.
        head (str | Sequence[str]): Head that the config must have, or one of these: those of the
            toolbox's models, MCIBIHead and MCIBIPlusPlusHead, by default; 'MDRLHead' for CMDL,
            'ProtoSegHead' for ProtoSeg.
        model (str, optional): Name of a released model. Defaults to the name of `source` where that
            is one.
        cfg_options (dict, optional): Changes to the config.
        out_config (str, optional): Config to write, with the channels of the checkpoint and, for a
            known model, the settings that have no tensor. Without it, a config that differs is
            refused.

    Returns:
        Conversion: What was done.

    Raises:
        ConversionError: Something doesn't fit; nothing has been written.
        InputError: There is no such config, or it can't be built.
    """
    heads = [head] if isinstance(head, str) else list(head)
    name = recognise(source, model)
    known = None if name is None else RELEASED[name]
    for out in filter(None, (target, out_config)):
        refuse_same(out, [config, source])
    cfg = load_config(config, cfg_options)
    head = cfg.model.get('decode_head', {}).get('type')
    if head not in heads:
        raise ConversionError(f'{config} has a {head}, not an {" or ".join(heads)}')
    if known is not None and known.head != head:
        raise ConversionError(
            f'{name} is a model for {known.head}, and {config} has a {head}; use {known.config}.py'
        )
    released = read_state(source)
    state = convert_state(released, head)
    with setting_up(cfg, str(config), cfg_options):
        built, changed = fit_config(cfg, released, known, change=out_config is not None)
    notes: List[str] = []
    _drop_unused_norm(state, built, notes)
    check_fit(state, built)

    dataset = _classes_of(cfg)
    if known is None:
        listed = any(listed_model.head in heads for listed_model in RELEASED.values())
        hint = ', or say which it is with --model' if listed else ''
        notes += _cannot_be_known(built, dataset, hint)
    elif known.dataset is None:
        dataset = None
        notes.append(
            f'{name} predicts the classes of a data set that MMSegmentation has not; their names '
            "aren't saved, and the data set of the config is another"
        )
    else:
        theirs = dataset_meta(known.dataset)
        if dataset and dataset_meta(dataset)['classes'] != theirs['classes']:
            raise ConversionError(
                f'{name} predicts the classes of {known.dataset}, in their order; the config '
                f'trains on {dataset}. Use {known.config}.py, with the data set of the model'
            )
        dataset = known.dataset
    meta: Dict[str, Any] = dict(converted_from=Path(source).name)
    if dataset is not None and DATASETS.get(dataset) is not None:
        meta['dataset_meta'] = dataset_meta(dataset)

    with written_beside(target) as unfinished:
        torch.save(dict(state_dict=state, meta=meta), unfinished)
    if out_config is not None:
        with written_beside(out_config) as unfinished:
            cfg.dump(unfinished)
    return Conversion(state, name, changed, notes)


def _cannot_be_known(built: BaseModule, dataset: Optional[str], hint: str) -> List[str]:
    """What is taken from the config, since no tensor shows it."""
    lines = []
    for key in UNKNOWABLE:
        try:
            lines.append(f'  {key}={read_fact(built, key)!r}')
        except (AttributeError, TypeError):  # a model without this part
            continue
    return [
        'not a released model by name. What follows has no tensor, and is as the config has it; '
        f'check it against how the model was trained{hint}:',
        *lines,
        f'  classes and their order: {dataset or "the config names no data set"}',
    ]
