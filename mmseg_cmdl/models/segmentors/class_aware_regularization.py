"""What CAR adds to a segmentor: a 1x1 conv before the classifier and losses on its output.

Source: CAR, section 3.1 and fig. 3. Position 'released' and `pool_size` are of the authors' code.
"""

import inspect
from contextlib import contextmanager
from functools import partial
from typing import Dict, Iterator, List, Optional, Sequence, Tuple, Union, cast

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from ...utils import (
    add_loss,
    as_list,
    at_least_float32,
    check_finite,
    check_flags,
    labels_at_feature_size,
    registered_class,
    warn_without_effect,
)
from ..decode_heads.label_check import LABELS_ARE_CHECKED, num_labels
from ..losses import class_centers
from .pointwise import make_pointwise_, replace_conv_

DEFAULT_LOSSES = (
    dict(type='IntraClassCenterToPixelLoss'),
    dict(type='InterClassCenterToCenterLoss'),
    dict(type='InterClassCenterToPixelLoss'),
)
LABEL_RESIZING = ('nearest', 'nearest-exact')
POSITIONS = ('classifier', 'released')
# The conv, norm and ReLU before which the authors' code has CAR: `conv_cat` or the last of `convs`,
# or these.
_HEADS_OF_CONVS = ('FCNHead', 'NLHead', 'CCHead')
_RELEASED_PLACES = dict(
    ASPPHead=['bottleneck'],
    CAAHead=['bottleneck'],
    CPHead=['bottleneck'],
    DAHead=['pam_out_conv', 'cam_out_conv'],
    OCRHead=['object_context_block.bottleneck'],
    UPerHead=['fpn_bottleneck'],
)


def released_places(head: BaseDecodeHead) -> List[str]:
    """Sub-modules of a head that CAR stands before in the authors' code.

    Each is the ConvModule after what the head concatenates or attends to, whose output is
    classified; of DAHead, that of each branch.

    Raises:
        ValueError: The authors have no such head, or it has no conv before its classifier.
    """
    name = type(head).__name__
    places = _RELEASED_PLACES.get(name, [])
    if name in _HEADS_OF_CONVS:
        convs = [key for key, _ in head.convs.named_children()]
        places = ['conv_cat'] if head.concat_input else [f'convs.{key}' for key in convs[-1:]]
    if not places:
        heads = ', '.join(sorted([*_HEADS_OF_CONVS, *_RELEASED_PLACES]))
        raise ValueError(
            f"position='released' is for {heads}, with a conv before the classifier, as in the "
            f"authors' code, and not for this {name}: use position='classifier'"
        )
    return places


class ClassAwareRegularization(BaseModule):
    """The linear conv before `conv_seg`, and the losses on what enters `conv_seg`.

    A forward pre-hook of `conv_seg` puts the conv in and, inside :meth:`capture`, keeps its output.
    Where the head drops channels before `conv_seg`, as MMSegmentation's heads do, conv and losses
    see the features before that: to a variance inside classes, dropped channels are a spread of
    0.1 E[x^2] that only smaller features lessen. The dropout then follows the conv.

    The conv starts as the identity where its channels match, and as random orthonormal directions
    where it has fewer channels out than in; then the head gets a `conv_seg` that fits.

    With position 'released' all this is as in the authors' code: the conv has a bias, starts by
    Glorot's rule, and stands before the conv, norm and ReLU (in `pointwise`: 1x1) that `conv_seg`
    follows; see :func:`released_places`. Of the two branches of DAHead each has its own conv, and
    the losses of both are added.

    Args:
        head (BaseDecodeHead): The decode head whose `conv_seg` this is for. It isn't kept.
        losses (Sequence[dict]): Losses, with their weights and thresholds, each called as
            `loss(features [P, C], labels [P], centers [K, C], counts [K], ignore_index=...)`; see
            :func:`mmseg_cmdl.models.losses.class_centers`. Defaults to
            IntraClassCenterToPixelLoss, InterClassCenterToCenterLoss (threshold 0.5) and
            InterClassCenterToPixelLoss (0.25), each of weight 1.
        formulation (str): 'paper' or 'released', of the losses that don't say theirs.
            Defaults to 'paper'.
        linear (bool): Whether to put a linear conv before `conv_seg`. Defaults to True.
        max_channels (int): Most channels that leave the linear conv; up to so many it starts as
            the identity. Defaults to 512.
        pointwise (Sequence[str]): Sub-modules of the head whose 3x3 convs become 1x1 at build ("A"
            in CAR, table 1), as ['convs.1', 'conv_cat'] of NLHead or ['fpn_bottleneck'] of
            UPerHead. Defaults to ().
        label_resize (str): How labels are brought to feature size: 'nearest' or 'nearest-exact', as
            in `F.interpolate`. Defaults to 'nearest'.
        position (str): 'classifier' or 'released'. Defaults to 'classifier'.
        pool_size (int): The losses see features averaged over squares of so many pixels a side; 2
            for UPerHead and OCRHead in the authors' code. Defaults to 1.

    Attributes:
        places (list[str]): Sub-modules of the head that linear convs and losses stand before.
        spatial_sizes (dict[str, torch.Size]): Shape that each weight made 1x1 had before.

    Raises:
        ValueError: A head without `conv_seg`, or options that don't fit.
    """

    def __init__(
        self,
        head: BaseDecodeHead,
        *,
        losses: Union[dict, Sequence[dict], None] = DEFAULT_LOSSES,
        formulation: str = 'paper',
        linear: bool = True,
        max_channels: int = 512,
        pointwise: Union[str, Sequence[str]] = (),
        label_resize: str = 'nearest',
        position: str = 'classifier',
        pool_size: int = 1,
        fuse_losses: Optional[bool] = None,
        check_labels: Optional[str] = None,
    ):
        super().__init__()
        warn_without_effect(self, 'There is one form of the losses', fuse_losses=fuse_losses)
        warn_without_effect(self, LABELS_ARE_CHECKED, check_labels=check_labels)
        if not isinstance(getattr(head, 'conv_seg', None), nn.Conv2d):
            raise ValueError(
                f'{type(head).__name__} has no conv_seg, the conv that classifies pixels: CAR '
                'regularises the features that enter it. Use a head that ends in conv_seg, as '
                'FCNHead, ASPPHead, PSPHead, NLHead, CCHead, DAHead, OCRHead, UPerHead and '
                'SegformerHead do'
            )
        check_flags(self, linear=linear)
        if position not in POSITIONS:
            raise ValueError(f'position must be one of {POSITIONS}, got {position!r}')
        self.position = position
        self.places = ['conv_seg'] if position == 'classifier' else released_places(head)
        sizes = {key: value.shape for key, value in head.state_dict().items()}
        make_pointwise_(head, [pointwise] if isinstance(pointwise, str) else pointwise)
        self.spatial_sizes = {
            key: sizes[key] for key, value in head.state_dict().items() if value.shape != sizes[key]
        }
        if label_resize not in LABEL_RESIZING:
            raise ValueError(f'label_resize must be one of {LABEL_RESIZING}, got {label_resize!r}')
        check_finite(self, max_channels=max_channels, pool_size=pool_size)
        for name, value in (('max_channels', max_channels), ('pool_size', pool_size)):
            if value < 1:
                raise ValueError(f'{name} must be at least 1, got {value}')
        self.num_classes, self.ignore_index = num_labels(head), head.ignore_index
        self.head_name = type(head).__name__
        self.label_resize = label_resize
        self.losses = nn.ModuleList(_build_loss(loss, formulation) for loss in as_list(losses))
        self.pool_size = pool_size
        self.linear: Union[nn.Conv2d, nn.ModuleList, None] = None  # a list for several places
        if linear:
            # with the random state put back, the rest of the model starts as it would without CAR
            with torch.random.fork_rng(devices=[]):
                convs = [self._build_linear(head, place, max_channels) for place in self.places]
            self.linear = convs[0] if len(convs) == 1 else nn.ModuleList(convs)
        for index, place in enumerate(self.places):
            # a bound method: copies of the model (EMA) get a hook to their own conv
            head.get_submodule(place).register_forward_pre_hook(partial(self._enter, index))
        dropout = getattr(head, 'dropout', None)
        if position == 'classifier' and isinstance(dropout, _DropoutNd):
            dropout.register_forward_hook(self._leave_dropout)
        self._capturing = False
        self._features: List[Tuple[int, Tensor]] = []  # with the index of the place
        self._dropped: Optional[tuple] = None

    @property
    def linears(self) -> List[nn.Conv2d]:
        """The linear conv of each place, or none."""
        if self.linear is None:
            return []
        convs = self.linear if isinstance(self.linear, nn.ModuleList) else [self.linear]
        return cast(List[nn.Conv2d], list(convs))

    @torch.no_grad()
    def _build_linear(self, head: BaseDecodeHead, place: str, max_channels: int) -> nn.Conv2d:
        """A linear conv; what it stands before becomes smaller where it has to."""
        released = self.position == 'released'
        key = f'{place}.conv' if released else place
        old = head.get_submodule(key)
        channels = min(old.in_channels, max_channels)
        linear = nn.Conv2d(old.in_channels, channels, 1, bias=released)
        if linear.bias is not None:
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        elif channels == old.in_channels:
            nn.init.dirac_(linear.weight)
        else:
            nn.init.orthogonal_(linear.weight)
        if channels < old.in_channels:
            replace_conv_(head, key, in_channels=channels)
        return linear

    def _leave_dropout(self, dropout: nn.Module, inputs: tuple, output: Tensor) -> None:
        if self._capturing:
            self._dropped = (dropout, inputs[0], output)

    def _enter(self, index: int, module: nn.Module, inputs: tuple) -> tuple:
        features, (dropout, before, after) = inputs[0], self._dropped or (None, None, None)
        self._dropped = None
        # heads may drop channels elsewhere too: only what comes here right after it counts
        dropped = after is features and dropout is not None
        if dropped:
            features = before
        if self.linear is not None:
            features = self.linears[index](features)
        if self._capturing:
            self._features.append((index, features))
        if dropped:
            # without a conv what was dropped already; else once more, of what the conv gives
            features = after if self.linear is None else dropout.forward(features)
        return (features, *inputs[1:])

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Keep what enters :attr:`places` for :meth:`loss`."""
        self._capturing, self._features = True, []
        try:
            yield
        finally:
            self._capturing, self._dropped = False, None

    def loss(self, labels: Tensor) -> Dict[str, Tensor]:
        """All losses on the captured features, which are let go.

        Where `conv_seg` was called several times, as by MCIBIHead, which classifies its memory
        too, they are those of the last call with the largest map of each image.

        Args:
            labels (Tensor): [B, H, W], any size.

        Returns:
            dict[str, Tensor]: Scalars by `loss_name`, summed over :attr:`places`.
        """
        captured, self._features = self._features, []
        results: Dict[str, Tensor] = {}
        if not self.losses:
            return results
        for index, place in enumerate(self.places):
            maps = [x for i, x in reversed(captured) if i == index and len(x) == len(labels)]
            if not maps:
                raise RuntimeError(
                    f'{self.head_name} did not call its {place} during the forward pass of '
                    'training, so CAR has no features to regularise; it can not be used with this '
                    'head'
                )
            self._add_losses(results, max(maps, key=lambda x: x.shape[2] * x.shape[3]), labels)
        return results

    def _add_losses(self, results: Dict[str, Tensor], features: Tensor, labels: Tensor) -> None:
        """Add the losses on one map [B, C, h, w]."""
        ignore_index = -1 if self.ignore_index is None else self.ignore_index
        with torch.autocast(features.device.type, enabled=False):
            features = at_least_float32(features)
            if self.pool_size > 1:
                features = F.avg_pool2d(features, self.pool_size, ceil_mode=True)
            labels = labels_at_feature_size(labels, features.shape[2:], self.label_resize).flatten()
            features = features.permute(0, 2, 3, 1).flatten(0, 2)
            centers, counts = class_centers(features, labels, self.num_classes, ignore_index)
            for loss in self.losses:
                value = loss(features, labels, centers, counts, ignore_index=ignore_index)
                add_loss(results, str(loss.loss_name), value)


def _build_loss(cfg: dict, formulation: Optional[str]) -> nn.Module:
    """A loss that has a formulation and doesn't say which takes the segmentor's."""
    loss = registered_class(cfg)
    if loss is not None and 'formulation' in inspect.signature(loss).parameters:
        cfg = {'formulation': formulation, **cfg}
    return MODELS.build(cfg)


# What a config of CAR has and that of the plain segmentor has not.
CAR_OPTIONS = tuple(
    name
    for name, parameter in inspect.signature(ClassAwareRegularization).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
)
