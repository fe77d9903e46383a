"""A segmentor as one function from images to logits, without what only training needs."""

import copy
from contextlib import contextmanager
from typing import Iterator, Optional, Sequence

import torch
from mmengine.model import revert_sync_batchnorm
from mmseg.models.segmentors import BaseSegmentor
from mmseg.models.utils import resize
from torch import Tensor, nn

from ..models.segmentors.merging import merged
from ..models.segmentors.pointwise import replace_conv_
from ..utils import last_head
from .exportable_layers import make_exportable_

OUTPUTS = ('logits', 'probabilities', 'labels')


@contextmanager
def _resize_without_warning() -> Iterator[None]:
    """`mmseg.models.utils.resize` doesn't compare sizes, only to warn of a poor choice of them.

    The comparison turns a dynamic size into the number that the example had.
    """
    defaults = resize.__defaults__
    resize.__defaults__ = (*defaults[:-1], False)
    try:
        yield
    finally:
        resize.__defaults__ = defaults


def _fold_class_aware_regularization_(model: BaseSegmentor) -> None:
    """Merge the linear conv of CAR into the classifier that its hook stands before.

    One in the position of the authors' code stays where it is.
    """
    head = last_head(model)
    if model.car.position == 'released':
        return
    old = head.conv_seg
    weight = old.weight
    for linear in model.car.linears:
        weight = merged(weight, linear.weight)
    replace_conv_(head, 'conv_seg', in_channels=weight.shape[1])  # a new one has no hook
    with torch.no_grad():
        head.conv_seg.weight.copy_(weight)
        if old.bias is not None:
            head.conv_seg.bias.copy_(old.bias)
    head.car = None


class InferenceModel(nn.Module):
    """A copy of a segmentor for inference only, on whole images.

    Auxiliary heads, losses, projections and memory banks are taken off: a head with a memory has
    its voting folded into one 1x1 conv (its `fold_`), and the linear conv of CAR is merged into
    the classifier, unless its position is that of the authors' code. SyncBN becomes BN. `test_cfg`
    isn't used: the caller does sliding windows and all else that is done around the network.

    Args:
        model (BaseSegmentor): An EncoderDecoder or CascadeEncoderDecoder; it is left alone.
        output (str): 'logits' [B, K, H, W], 'probabilities' (their softmax, or sigmoid where the
            head has one output), or 'labels' [B, H, W], int64.
        mean, std (Sequence[float], optional): Per channel. If given, images come as 0..255 and are
            normalised here; otherwise they come normalised.

    Raises:
        ValueError: An unknown `output`, or a `mean` without `std`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: BaseSegmentor,
        output: str = 'logits',
        mean: Optional[Sequence[float]] = None,
        std: Optional[Sequence[float]] = None,
    ):
        super().__init__()
        if output not in OUTPUTS:
            raise ValueError(f'output must be one of {OUTPUTS}, got {output!r}')
        if (mean is None) != (std is None):
            raise ValueError('mean and std are given together or not at all')
        self.output = output
        model = revert_sync_batchnorm(copy.deepcopy(model)).eval()
        if getattr(model, 'car', None) is not None:
            _fold_class_aware_regularization_(model)
        if getattr(model, 'auxiliary_head', None) is not None:
            model.auxiliary_head = None
        for module in list(model.modules()):
            if hasattr(module, 'fold_'):
                module.fold_()
        for module in model.modules():
            for name in ('loss_decode', 'loss_coarse'):
                if isinstance(getattr(module, name, None), nn.Module):
                    setattr(module, name, None)
        make_exportable_(model)
        self.model = model.requires_grad_(False)
        self.normalizes = mean is not None
        if self.normalizes:
            self.register_buffer('mean', torch.tensor(mean)[:, None, None])
            self.register_buffer('std', torch.tensor(std)[:, None, None])
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] to what `output` says, at the size of the images."""
        if self.normalizes:
            images = (images - self.mean) / self.std
        size = tuple(images.shape[2:])
        metas = [dict(img_shape=size, pad_shape=size, ori_shape=size)]
        with _resize_without_warning():
            logits = self.model.encode_decode(images, metas)
        one_output = self.model.out_channels == 1
        if self.output == 'probabilities':
            return logits.sigmoid() if one_output else logits.softmax(dim=1)
        if self.output == 'labels':
            if one_output:
                return (logits.sigmoid() > last_head(self.model).threshold).long().squeeze(1)
            return logits.argmax(dim=1)
        return logits
