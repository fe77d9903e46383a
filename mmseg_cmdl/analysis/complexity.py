"""What a context module costs on a feature map: parameters, multiply-adds, time and memory.

Source of the comparison: MCIBI, table 3.
"""

from typing import Callable, Dict, List, Optional, Sequence

import torch
from mmengine.config import Config
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.utils import benchmark
from torch.utils.flop_counter import FlopCounterMode

from ..config_file import type_name
from ..errors import InputError

#: The modules of MCIBI's table 3 and those of this package, by the head that holds them.
CONTEXTS: Dict[str, dict] = {
    'none (FCN)': dict(type='FCNHead'),
    'PPM': dict(type='PSPHead'),
    'ASPP': dict(type='ASPPHead', dilations=(1, 12, 24, 36)),
    'CCNet': dict(type='CCHead'),
    'DANet': dict(type='DAHead', pam_channels=64),
    # two maps, the first with half the channels, as stages 3 and 4 of a ResNet
    'ANN': dict(
        type='ANNHead',
        maps=2,
        project_channels=256,
        query_scales=(1,),
        key_pool_scales=(1, 3, 6, 8),
    ),
    'DNL': dict(type='DNLHead'),
    'APCNet': dict(type='APCHead'),
    'DCA (MCIBI)': dict(type='MCIBIHead'),
    'ASPP+DCA (MCIBI)': dict(
        type='MCIBIHead', context=dict(type='ASPPHead', dilations=(1, 12, 24, 36))
    ),
    'MDRL': dict(type='MDRLHead'),
    'PPM+MDRL': dict(type='MDRLHead', context=dict(type='PSPHead')),
    'DGCW': dict(type='DGCWHead', concat_features=False),
}

#: MCIBI, table 3, inference on a 1 x 2048 x 128 x 128 map on a V100, with parameters in millions,
#: multiply-adds in billions, milliseconds. The table's "FLOPs" are the multiply-adds of the
#: convolutions: the two products of an attention aren't in it, 2 x 128^4 x 256 = 137.4 billion with
#: 256 channels.
MCIBI_TABLE_3 = {
    'ASPP': (42.21, 674.47, 101.44),
    'PPM': (23.07, 309.45, 29.57),
    'CCNet': (23.92, 397.38, 56.90),
    'DANet': (23.92, 392.02, 62.64),
    'ANN': (20.32, 335.24, 49.66),
    'DNL': (24.12, 395.25, 68.62),
    'APCNet': (30.46, 413.12, 54.20),
    'DCA (MCIBI)': (14.82, 242.80, 47.64),
    'ASPP+DCA (MCIBI)': (45.63, 730.56, 125.03),
}
MCIBI_TABLE_3_SIZE = (1, 2048, 128, 128)


def build_context(cfg: dict, in_channels: int, channels: int, num_classes: int) -> nn.Module:
    """A decode head without its classifier `conv_seg`, in eval mode.

    Args:
        cfg (dict): Of the head; what it doesn't say is filled in from the rest. `maps=2`: it takes
            two, the first with half of `in_channels`.
        in_channels (int): Channels of the feature map, or the last of them.
        channels (int): Inside the head.
        num_classes (int): K, the number of classes.
    """
    defaults = dict(
        in_channels=in_channels,
        in_index=0,
        channels=channels,
        num_classes=num_classes,
        norm_cfg=dict(type='BN'),
        align_corners=False,
    )
    cfg = dict(cfg)
    if cfg.pop('maps', 1) == 2:
        defaults.update(in_channels=[in_channels // 2, in_channels], in_index=[0, 1])
    head = MODELS.build({**defaults, **cfg}).eval()
    if isinstance(getattr(head, 'conv_seg', None), nn.Conv2d):
        head.conv_seg = nn.Identity()
    return head


def head_of_config(cfg: Config) -> dict:
    """Config of the decode head of a model, for one feature map: the one that its `in_index` names.

    Raises:
        InputError: The model has none, or one that needs several maps.
    """
    head = cfg.get('model', {}).get('decode_head')
    if head is None:
        raise InputError(f'{cfg.filename} has no model.decode_head')
    head = dict(head[-1] if isinstance(head, (list, tuple)) else head)
    if not isinstance(head.get('in_channels'), int):
        raise InputError(
            f'the head of {cfg.filename} reads several feature maps '
            f'(in_channels={head.get("in_channels")}); only heads on one can be '
            'compared at one feature size'
        )
    norm = dict(head.get('norm_cfg') or dict(type='BN'))
    if type_name(norm.get('type')) == 'SyncBN':  # needs a process group; the same in eval mode
        norm['type'] = 'BN'
    return {**head, 'in_index': 0, 'norm_cfg': norm}


def peak_memory(run: Callable, device: torch.device) -> int:
    """Bytes that PyTorch's allocator holds at most above what it held before `run`."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == '[memory]']
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def feature_maps(head: nn.Module, features: Tensor) -> List[Tensor]:
    """The maps that a head of :func:`build_context` takes, of which `features` is the last."""
    channels = head.in_channels
    if not isinstance(channels, (list, tuple)):
        return [features]
    return [features[:, :number] for number in channels]


@torch.no_grad()
def count_operations(head: nn.Module, features: Sequence[Tensor]) -> dict:
    """Parameters and multiply-adds of one inference pass; on the meta device, without running it.

    Returns:
        dict: `params_m`, parameters in millions; `gmacs`, multiply-adds in billions, and
        `convs_gmacs`, those of convolutions alone.
    """
    with FlopCounterMode(display=False) as counter:
        head(features)
    convs = counter.get_flop_counts()['Global'].get(torch.ops.aten.convolution, 0)
    return dict(
        params_m=sum(p.numel() for p in head.parameters()) / 1e6,
        gmacs=counter.get_total_flops() / 2e9,
        convs_gmacs=convs / 2e9,
    )


@torch.no_grad()
def measure_complexity(
    head: nn.Module,
    shape: Sequence[int],
    device: str = 'cpu',
    min_seconds: Optional[float] = 1.0,
    seed: int = 0,
) -> dict:
    """Cost of one inference pass.

    Args:
        head (nn.Module): Called with a list of feature maps.
        shape (Sequence[int]): Shape of the last map (B, C, h, w).
        device (str): 'cpu' or a CUDA device.
        min_seconds (float, optional): Measure the time for at least this long; None measures none.
        seed (int): Seed of the random map.

    Returns:
        dict: What :func:`count_operations` gives; `ms`, median time of a pass; `peak_mib`, memory
        held at most during it beside map and parameters.
    """
    head = head.to(device).eval()
    generator = torch.Generator().manual_seed(seed)
    last = torch.randn(*shape, generator=generator).to(device)
    features = feature_maps(head, last)
    out = dict(
        **count_operations(head, features),
        ms=None,
        peak_mib=peak_memory(lambda: head(features), last.device) / 2**20,
    )
    if min_seconds is not None:
        timer = benchmark.Timer(
            'head(features)',
            globals=dict(head=head, features=features),
            num_threads=torch.get_num_threads(),
        )
        out['ms'] = 1e3 * timer.blocked_autorange(min_run_time=min_seconds).median
    return out
