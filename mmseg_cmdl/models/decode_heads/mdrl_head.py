"""MDRLHead: several distributions per class in a memory bank (MDRL / CMDL)."""

import inspect
from typing import Any, Dict, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from torch import Tensor, nn

from ...registry import MODELS
from ...utils import (
    as_list,
    at_least_float32,
    check_choice,
    labels_at_feature_size,
    layer_norm,
    registered_class,
    warn_without_effect,
)
from ..losses import ClassGlobalConsistencyLoss, ClassLocalConsistencyLoss
from ..memory import DistributionBank
from .dataset_context_head import DatasetContextHead
from .loss_check import check_losses_of_similarity


class PixelProjection(nn.Module):
    """Embedding of a pixel: 1x1 conv, norm, ReLU, 1x1 conv, l2, LayerNorm, l2 (released code).

    Args:
        in_channels (int): C, the channels of the map.
        channels (int): Z, the length of an embedding.
        **conv_options: `conv_cfg`, `norm_cfg`, `act_cfg` of the first conv.
    """

    def __init__(self, in_channels: int, channels: int, **conv_options: Any):
        super().__init__()
        self.convs = nn.Sequential(
            ConvModule(in_channels, in_channels, 1, **conv_options),
            nn.Conv2d(in_channels, channels, 1),
        )
        self.norm = nn.LayerNorm(channels)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, C, h, w] to unit vectors [B, h, w, Z], at least float32 whatever autocast says."""
        embeddings = self.convs(pixels).permute(0, 2, 3, 1)
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = F.normalize(at_least_float32(embeddings), dim=-1)
            return F.normalize(layer_norm(embeddings, self.norm), dim=-1)


@MODELS.register_module()
class MDRLHead(DatasetContextHead):
    """Class-level multiple distributions representation learning (MDRL, CMDL).

    Args:
        bank (dict): Config of a :class:`DistributionBank`; `num_classes` is filled in, and where
            they are left out `type`, `num_distributions` (9) and `channels` (Z; C).
        loss_consistency (dict | list[dict], optional): Losses on the similarity of pixels and
            distributions, each called as `loss(similarity [B, h, w, K, N], labels [B, H, W],
            ignore_index=...)`; None for none, which needs `embedding='pixel'`.
            Defaults to both class consistency losses, weights 0.01 and 0.05 (MDRL eq. 18).
        embedding (str): 'projection' (released code) embeds pixels by :class:`PixelProjection`;
            'pixel' (paper) takes the l2-normalised R itself. Defaults to 'projection'.
        **kwargs: Options of :class:`DatasetContextHead`: `context`, `fusion`, `loss_coarse`, ...

    The bank's `update_pixels='correct'` means the pixels whose nearest distribution is of their own
    class; with a :class:`ClassLocalConsistencyLoss` of formulation 'released' those whose own class
    has the largest score after its LayerNorm over classes, as in the released code. The two differ
    once the norm's weights have been trained.

    :meth:`loss` also logs `acc_distribution`, the percentage of labelled pixels that are correct in
    this sense, and `stat_left_out_pixels`, the number of labelled pixels
    whose embedding isn't finite and was kept from the bank. Both count the pixels of all ranks.
    """

    bank: DistributionBank
    training_parts: Tuple[str, ...] = (
        *DatasetContextHead.training_parts,
        'projection',
        'fuse_memory',
    )
    embedding_layers = ('bottleneck', 'projection')

    def __init__(
        self,
        *args: Any,
        bank: dict = dict(type='DistributionBank', num_distributions=9),
        loss_consistency: Union[dict, Sequence[dict], None] = (
            dict(type='ClassLocalConsistencyLoss', loss_weight=0.01),
            dict(type='ClassGlobalConsistencyLoss', loss_weight=0.05),
        ),
        embedding: str = 'projection',
        fuse_losses: Optional[bool] = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        warn_without_effect(self, 'There is one form of the losses', fuse_losses=fuse_losses)
        loss_consistency = as_list(loss_consistency)
        check_choice(self, ('projection', 'pixel'), embedding=embedding)
        if embedding == 'projection' and not loss_consistency:
            raise ValueError(
                'MDRLHead: only loss_consistency trains the projection; give it a loss, or set '
                "embedding='pixel'"
            )
        self.bank = self._build_bank(
            bank, DistributionBank, num_distributions=9, channels=self.channels
        )
        if embedding == 'pixel' and self.bank.channels != self.channels:
            raise ValueError(
                "MDRLHead: embedding='pixel' stores the head's own channels; bank channels="
                f'{self.bank.channels} must equal channels={self.channels}'
            )
        self.fuse_memory = ConvModule(
            self.bank.num_distributions * self.bank.channels, self.channels, 1, **self.conv_options
        )
        self.projection = None
        if embedding == 'projection':
            self.projection = PixelProjection(
                self.channels, self.bank.channels, **self.conv_options
            )
        self.consistency = self._build_consistency(map(self._build_loss, loss_consistency))
        kinds = ClassLocalConsistencyLoss, ClassGlobalConsistencyLoss
        check_losses_of_similarity(self, 'loss_consistency', self.consistency.losses, kinds)

    def _build_loss(self, cfg: dict) -> nn.Module:
        """A loss that can be told the number of classes is told it."""
        loss = registered_class(cfg)
        if loss is not None and 'num_classes' in inspect.signature(loss).parameters:
            cfg = {'num_classes': self.num_classes, **cfg}
        return MODELS.build(cfg)

    def read_memory(self, weights: Tensor) -> Tensor:
        """Feature voting and fusion (MDRL eq. 9): [B, K, h, w] to R_m [B, C, h, w].

        The convolution of `fuse_memory` is applied to the bank, not to the N voted maps.
        """
        matrix, bias = self._fused_rows(weights.dtype)
        voted = F.conv2d(weights, matrix.t()[:, :, None, None])
        if bias is not None:
            voted = voted + bias[:, None, None].to(voted.dtype)
        if self.fuse_memory.with_norm:
            voted = self.fuse_memory.norm(voted)
        return self.fuse_memory.activate(voted) if self.fuse_memory.with_activation else voted

    def _fused_rows(self, dtype: torch.dtype) -> Tuple[Tensor, Optional[Tensor]]:
        """The convolution of `fuse_memory` on the N vectors of each class, [K, C], and its bias.

        The layer is called, so that a conv that standardises its weight (ConvWS), a
        parametrization, an adapter or a hook acts as on the voted maps.
        """
        conv = self.fuse_memory.conv
        rows = self.bank.class_vectors().flatten(1).to(dtype)
        matrix = conv(rows[:, :, None, None]).flatten(1).to(dtype)
        bias = getattr(conv, 'bias', None)
        return (matrix, None) if bias is None else (matrix - bias.to(dtype), bias)

    @torch.no_grad()
    def fold_memory(self) -> nn.Module:
        """See the base class; the norm and activation of `fuse_memory` follow the conv."""
        fuse = self.fuse_memory
        matrix, bias = self._fused_rows(self.conv_seg.weight.dtype)
        conv = nn.Conv2d(self.num_classes, self.channels, 1, bias=bias is not None).to(matrix)
        conv.weight.copy_(matrix.t()[..., None, None])
        if conv.bias is not None:
            conv.bias.copy_(bias)
        return nn.Sequential(
            conv,
            *([fuse.norm] if fuse.with_norm else []),
            *([fuse.activate] if fuse.with_activation else []),
        )

    def embed(self, pixels: Tensor) -> Tensor:
        """R [B, C, h, w] to unit vectors [B, h, w, Z]."""
        if self.projection is not None:
            return self.projection(pixels)
        with torch.autocast(pixels.device.type, enabled=False):
            return F.normalize(at_least_float32(pixels.permute(0, 2, 3, 1)), dim=-1)

    def memory_losses(self, pixels: Tensor, labels: Tensor) -> Dict[str, Tensor]:
        """See the base class: the class consistency losses on the similarity (3.5)."""
        embeddings = self.embed(pixels)
        similarity = self.bank.similarity(embeddings)
        batch = dict(embeddings=embeddings, similarity=similarity, labels=labels)
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.consistency(batch, similarity, labels, ignore_index=self.ignore_index)

    @torch.no_grad()
    def update_bank(
        self, embeddings: Tensor, similarity: Tensor, labels: Tensor
    ) -> Dict[str, Tensor]:
        """Moves the bank (MDRL 3.2, eq. 6 to 8).

        Args:
            embeddings (Tensor): [B, h, w, Z].
            similarity (Tensor): [B, h, w, K, N].
            labels (Tensor): [B, H, W].

        Returns:
            dict[str, Tensor]: `acc_distribution` and `stat_left_out_pixels`; see the class.
        """
        labels = labels_at_feature_size(labels, embeddings.shape[1:3])
        correct = None  # by the cosine, which the bank compares itself
        for loss in self.consistency.losses:
            if isinstance(loss, ClassLocalConsistencyLoss) and loss.norm is not None:
                correct = (loss.class_scores(similarity).argmax(dim=-1) == labels).flatten()
                break
        counted = self.bank.update_(
            embeddings.flatten(0, 2),
            labels.flatten(),
            ignore_index=self.ignore_index,
            correct=correct,
            similarity=similarity.flatten(0, 2),
        )
        if counted is None:
            return {}
        return dict(
            acc_distribution=100 * counted.correct / counted.labelled.clamp(min=1),
            stat_left_out_pixels=counted.left_out,
        )
