"""What CAR adds to a segmentor: a 1x1 conv before the classifier and losses on its output.

Source: CAR, section 3.1 and fig. 3.
"""

import inspect
from contextlib import contextmanager
from typing import Dict, Iterator, List, Optional, Sequence, Union

import torch
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
    labels_at_feature_size,
    registered_class,
    warn_without_effect,
)
from ..decode_heads.label_check import LABELS_ARE_CHECKED, num_labels
from ..losses import class_centers
from .pointwise import make_pointwise_

DEFAULT_LOSSES = (
    dict(type='IntraClassCenterToPixelLoss'),
    dict(type='InterClassCenterToCenterLoss'),
    dict(type='InterClassCenterToPixelLoss'),
)
LABEL_RESIZING = ('nearest', 'nearest-exact')


def classifier_of(head: BaseDecodeHead) -> nn.Conv2d:
    """`conv_seg` of a decode head.

    Raises:
        ValueError: The head has none; says what CAR needs it for.
    """
    classifier = getattr(head, 'conv_seg', None)
    if not isinstance(classifier, nn.Conv2d):
        raise ValueError(
            f'{type(head).__name__} has no conv_seg, the conv that classifies pixels: CAR '
            'regularises the features that enter it. Use a head that ends in conv_seg, as FCNHead, '
            'ASPPHead, PSPHead, NLHead, CCHead, DAHead, OCRHead, UPerHead and SegformerHead do'
        )
    return classifier


class ClassAwareRegularization(BaseModule):
    """The linear conv before `conv_seg`, and the losses on what enters `conv_seg`.

    A forward pre-hook of `conv_seg` puts the conv in and, inside :meth:`capture`, keeps its output.
    Where the head drops channels before `conv_seg`, as MMSegmentation's heads do, conv and losses
    see the features before that: to a variance inside classes, dropped channels are a spread of
    0.1 E[x^2] that only smaller features lessen. The dropout then follows the conv.

    The conv starts as the identity where its channels match, and as random orthonormal directions
    where it has fewer channels out than in; then the head gets a `conv_seg` that fits.

    Args:
        head (BaseDecodeHead): The decode head whose `conv_seg` this is for. It isn't kept.
        losses (Sequence[dict]): Losses, with their weights and thresholds, each called as
            `loss(features [P, C], labels [P], centers [K, C], counts [K], ignore_index=...)`; see
            :func:`mmseg_cmdl.models.losses.class_centers`. Defaults to
            IntraClassCenterToPixelLoss, InterClassCenterToCenterLoss (threshold 0.5) and
            InterClassCenterToPixelLoss (0.25), each of weight 1.
        formulation (str): 'paper' or 'released', of the losses that don't say theirs.
            Defaults to 'paper'.
        linear (bool): Put a linear conv before `conv_seg`. Defaults to True.
        max_channels (int): Most channels that leave the linear conv; up to so many it starts as
            the identity. Defaults to 512.
        pointwise (Sequence[str]): Sub-modules of the head whose 3x3 convs become 1x1 at build ("A"
            in CAR, table 1), as ['convs.1', 'conv_cat'] of NLHead or ['fpn_bottleneck'] of
            UPerHead. Defaults to ().
        label_resize (str): How labels are brought to feature size: 'nearest' or 'nearest-exact', as
            in `F.interpolate`. Defaults to 'nearest'.

    Attributes:
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
        fuse_losses: Optional[bool] = None,
        check_labels: Optional[str] = None,
    ):
        super().__init__()
        warn_without_effect(self, 'There is one form of the losses', fuse_losses=fuse_losses)
        warn_without_effect(self, LABELS_ARE_CHECKED, check_labels=check_labels)
        classifier = classifier_of(head)
        sizes = {key: value.shape for key, value in head.state_dict().items()}
        make_pointwise_(head, [pointwise] if isinstance(pointwise, str) else pointwise)
        self.spatial_sizes = {
            key: sizes[key] for key, value in head.state_dict().items() if value.shape != sizes[key]
        }
        if label_resize not in LABEL_RESIZING:
            raise ValueError(f'label_resize must be one of {LABEL_RESIZING}, got {label_resize!r}')
        check_finite(self, max_channels=max_channels)
        if max_channels < 1:
            raise ValueError(f'max_channels must be at least 1, got {max_channels}')
        self.num_classes, self.ignore_index = num_labels(head), head.ignore_index
        self.head_name = type(head).__name__
        self.label_resize = label_resize
        self.losses = nn.ModuleList(_build_loss(loss, formulation) for loss in as_list(losses))
        self.linear: Optional[nn.Conv2d] = None
        if linear:
            # with the random state put back, the rest of the model starts as it would without CAR
            with torch.random.fork_rng(devices=[]):
                classifier = self._build_linear(head, max_channels)
        # a bound method: copies of the model (EMA) get a hook to their own conv
        classifier.register_forward_pre_hook(self._enter_classifier)
        if isinstance(getattr(head, 'dropout', None), _DropoutNd):
            head.dropout.register_forward_hook(self._leave_dropout)
        self._capturing = False
        self._features: List[Tensor] = []
        self._dropped: Optional[tuple] = None

    @torch.no_grad()
    def _build_linear(self, head: BaseDecodeHead, max_channels: int) -> nn.Conv2d:
        """Make the conv, and a smaller `conv_seg` where it needs one; returns `conv_seg`."""
        classifier = head.conv_seg
        channels = classifier.in_channels
        self.linear = nn.Conv2d(channels, min(channels, max_channels), 1, bias=False)
        if channels <= max_channels:
            nn.init.dirac_(self.linear.weight)
            return classifier
        nn.init.orthogonal_(self.linear.weight)
        head.conv_seg = nn.Conv2d(
            max_channels,
            classifier.out_channels,
            classifier.kernel_size,
            padding=classifier.padding,
            bias=classifier.bias is not None,
        )
        return head.conv_seg

    def _leave_dropout(self, dropout: nn.Module, inputs: tuple, output: Tensor) -> None:
        if self._capturing:
            self._dropped = (dropout, inputs[0], output)

    def _enter_classifier(self, classifier: nn.Module, inputs: tuple) -> tuple:
        features, (dropout, before, after) = inputs[0], self._dropped or (None, None, None)
        self._dropped = None
        # heads may drop channels elsewhere too: only what comes here right after it counts
        dropped = after is features and dropout is not None
        if dropped:
            features = before
        if self.linear is not None:
            features = self.linear(features)
        if self._capturing:
            self._features.append(features)
        if dropped:
            # without a conv what was dropped already; else once more, of what the conv gives
            features = after if self.linear is None else dropout.forward(features)
        return (features, *inputs[1:])

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Keep what enters `conv_seg` for :meth:`loss`."""
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
            dict[str, Tensor]: Scalars by `loss_name`.
        """
        captured, self._features = self._features, []
        if not self.losses:
            return {}
        captured = [features for features in reversed(captured) if len(features) == len(labels)]
        if not captured:
            raise RuntimeError(
                f'{self.head_name} did not call its conv_seg during the forward pass of training, '
                'so CAR has no features to regularise; it can not be used with this head'
            )
        features = max(captured, key=lambda features: features.shape[2] * features.shape[3])
        labels = labels_at_feature_size(labels, features.shape[2:], self.label_resize).flatten()
        features = features.permute(0, 2, 3, 1).flatten(0, 2)
        ignore_index = -1 if self.ignore_index is None else self.ignore_index
        with torch.autocast(features.device.type, enabled=False):
            features = at_least_float32(features)
            centers, counts = class_centers(features, labels, self.num_classes, ignore_index)
            results: Dict[str, Tensor] = {}
            for loss in self.losses:
                value = loss(features, labels, centers, counts, ignore_index=ignore_index)
                add_loss(results, str(loss.loss_name), value)
        return results

    @torch.no_grad()
    def folded(self, weight: Tensor) -> Tensor:
        """Kernel of `conv_seg` [K, C', ...] with the linear conv merged into it, [K, C, ...]."""
        if self.linear is None:
            return weight
        linear = self.linear.weight.flatten(1).double()
        return torch.einsum('kd...,dc->kc...', weight.double(), linear).to(weight)

    @torch.no_grad()
    def unfolded(self, weight: Tensor) -> Dict[str, Tensor]:
        """The linear conv with which a plain `conv_seg` [K, C, ...] predicts the same under CAR.

        Returns:
            dict[str, Tensor]: `linear` [C', C, 1, 1] and `conv_seg` [K, C', ...]: the identity and
            the kernel itself, or where C' < C an orthonormal basis of C' directions that holds all
            K rows of the kernel, and the kernel in that basis.
        """
        assert self.linear is not None  # without it a plain conv_seg is what it is
        into, out_of = self.linear.in_channels, self.linear.out_channels
        if into == out_of:
            return dict(linear=torch.eye(into).to(weight)[..., None, None], conv_seg=weight)
        rows = weight.flatten(2).transpose(1, 2).flatten(0, 1).double()
        if len(rows) > out_of:
            raise ValueError(
                f'{self.head_name}: the {len(rows)} rows of a plain conv_seg need not lie in '
                f'{out_of} directions; set max_channels to at least {min(into, len(rows))}'
            )
        fill = torch.randn(
            into,
            out_of - len(rows),
            dtype=torch.float64,
            generator=torch.Generator().manual_seed(0),
        ).to(rows.device)
        basis = torch.linalg.qr(torch.cat([rows.t(), fill], dim=1))[0].t()  # [C', C]
        return dict(
            linear=basis.to(weight)[..., None, None],
            conv_seg=torch.einsum('kc...,dc->kd...', weight.double(), basis).to(weight),
        )


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
