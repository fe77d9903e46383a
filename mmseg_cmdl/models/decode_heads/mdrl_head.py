"""MDRLHead: several distributions per class in a memory bank (MDRL / CMDL)."""

import inspect
from typing import Dict, List, NamedTuple, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmseg.registry import MODELS
from torch import Tensor, nn

from ...utils import as_list, at_least_float32, layer_norm, registered_class
from ..losses import can_fuse, fused_class_consistency
from ..losses.class_consistency_loss import pixel_classes
from ..memory import BankUpdate, DistributionBank
from .dataset_context_head import DatasetContextHead


class PixelProjection(nn.Module):
    """Embedding of a pixel: 1x1 conv, norm, ReLU, 1x1 conv, l2, LayerNorm, l2 (released code).

    Args:
        in_channels (int): C.
        channels (int): Z.
        **conv_options: `conv_cfg`, `norm_cfg`, `act_cfg` of the first conv.
    """

    def __init__(self, in_channels: int, channels: int, **conv_options):
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
            embeddings = _unit_vectors(embeddings)
            return F.normalize(layer_norm(embeddings, self.norm), dim=-1)


def _unit_vectors(pixels: Tensor) -> Tensor:
    """l2-normalised along the last dimension, in float32 or better."""
    with torch.autocast(pixels.device.type, enabled=False):
        return F.normalize(at_least_float32(pixels), dim=-1)


class ConsistencyOutput(NamedTuple):
    """What the consistency losses give, and what the bank is updated from."""

    losses: Dict[str, Tensor]
    embeddings: Tensor  # [P, Z], no gradient
    classes: Tensor  # [P], K for pixels without a class
    own_scores: Tensor  # [P, N]
    correct: Tensor  # [P]
    update: Optional[BankUpdate] = None  # filled in by the hook that updates the bank


class ClassConsistency(nn.Module):
    """Computes all class consistency losses of one iteration (MDRL, 3.5).

    Takes the fused path where every loss is known to it, and otherwise calls each loss on the
    similarity map, so that a user's own loss with the same signature needs nothing special.

    Args:
        losses (nn.ModuleList): Each called as `loss(similarity, labels, ignore_index)`.
        fuse (bool): Allow the fused path.
    """

    def __init__(self, losses: nn.ModuleList, fuse: bool = True):
        super().__init__()
        self.losses = losses
        self.fuse = fuse

    def forward(
        self, embeddings: Tensor, distributions: Tensor, labels: Tensor, ignore_index: int
    ) -> ConsistencyOutput:
        """
        Args:
            embeddings (Tensor): Unit vectors [B, h, w, Z].
            distributions (Tensor): [K, N, Z].
            labels (Tensor): [B, H, W].
            ignore_index (int): Label that doesn't count.

        Returns:
            ConsistencyOutput: Losses by name, and the pixels for the update.
        """
        distributions = distributions.to(embeddings.dtype)
        if self.fuse and can_fuse(self.losses):
            losses, *pixels = fused_class_consistency(
                embeddings, distributions, labels, self.losses, ignore_index
            )
        else:
            losses, *pixels = self._plain(embeddings, distributions, labels, ignore_index)
        return ConsistencyOutput(losses, embeddings.detach().flatten(0, 2), *pixels)

    def _plain(self, embeddings, distributions, labels, ignore_index):
        """Each loss on the whole similarity map; the rest as in :class:`FusedConsistency`."""
        num_classes, num_distributions, _ = distributions.shape
        # a copy: the graph holds it, and the bank moves before the backward pass
        similarity = F.linear(embeddings, distributions.flatten(0, 1).clone())
        similarity = similarity.unflatten(-1, (num_classes, num_distributions))
        losses = {}
        for loss in self.losses:
            value = loss(similarity, labels, ignore_index=ignore_index)
            name = loss.loss_name
            losses[name] = losses[name] + value if name in losses else value
        classes = pixel_classes(labels, embeddings.shape[1:3], num_classes, ignore_index).flatten()
        scores = similarity.detach().flatten(0, 2)
        own = classes.clamp(max=num_classes - 1)[:, None, None]
        own_scores = scores.gather(1, own.expand(-1, 1, num_distributions)).squeeze(1)
        return losses, classes, own_scores, own_scores.amax(dim=1) >= scores.amax(dim=(1, 2))


@MODELS.register_module()
class MDRLHead(DatasetContextHead):
    """Class-level multiple distributions representation learning (MDRL, CMDL).

    Args:
        bank (dict): Config of a :class:`DistributionBank`; `num_classes` is filled in, and where
            they are left out `type`, `num_distributions` (9) and `channels` (Z; C).
        loss_consistency (dict | list[dict], optional): Losses on the similarity of pixels and
            distributions, each called as `loss(similarity [B, h, w, K, N], labels [B, H, W],
            ignore_index=...)`; None for none, which needs `embedding='pixel'`.
            Defaults to both class consistency losses, weights 0.01 and 0.05 (eq. 18).
        embedding (str): 'projection' (released code) embeds pixels by :class:`PixelProjection`;
            'pixel' (paper) takes the l2-normalised R itself. Defaults to 'projection'.
        fuse_losses (bool): Form the known losses and their gradient chunk by chunk, the same
            numbers without the [P, K, N] similarity map; see
            :func:`mmseg_cmdl.models.losses.fused_class_consistency`. Defaults to True.
        **kwargs: Options of :class:`DatasetContextHead`: `context`, `fusion`, `loss_coarse`, ...

    :meth:`loss` also logs `acc_distribution`, the percentage of labelled pixels whose nearest
    distribution is of their own class, and `stat_left_out_pixels`, the number of labelled pixels
    whose embedding isn't finite and was kept from the bank. Both count the pixels of all ranks.
    """

    training_parts = (*DatasetContextHead.training_parts, 'projection', 'fuse_memory')
    embedding_layers = ('bottleneck', 'projection')

    def __init__(
        self,
        *args,
        bank: dict = dict(type='DistributionBank', num_distributions=9),
        loss_consistency: Union[dict, List[dict], None] = (
            dict(type='ClassLocalConsistencyLoss', loss_weight=0.01),
            dict(type='ClassGlobalConsistencyLoss', loss_weight=0.05),
        ),
        embedding: str = 'projection',
        fuse_losses: bool = True,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        loss_consistency = as_list(loss_consistency)
        if embedding not in ('projection', 'pixel'):
            raise ValueError(
                f"MDRLHead: embedding must be 'projection' or 'pixel', got {embedding!r}"
            )
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
        self.consistency = ClassConsistency(
            nn.ModuleList(self._build_loss(loss) for loss in loss_consistency), fuse_losses
        )
        self.consistency.register_forward_hook(self._update_bank)

    def _build_loss(self, cfg: dict) -> nn.Module:
        """A loss that can be told the number of classes is told it."""
        loss = registered_class(cfg)
        if loss is not None and 'num_classes' in inspect.signature(loss).parameters:
            cfg = {'num_classes': self.num_classes, **cfg}
        return MODELS.build(cfg)

    def read_memory(self, weights: Tensor) -> Tensor:
        """Feature voting and fusion (eq. 9): [B, K, h, w] to R_m [B, C, h, w].

        The convolution of `fuse_memory` is applied to the bank, not to the N voted maps.
        """
        conv = self.fuse_memory.conv
        voted = self.bank.vote(weights, conv.weight)
        if conv.bias is not None:
            voted = voted + conv.bias[:, None, None].to(voted.dtype)
        if self.fuse_memory.with_norm:
            voted = self.fuse_memory.norm(voted)
        return self.fuse_memory.activate(voted) if self.fuse_memory.with_activation else voted

    @torch.no_grad()
    def fold_memory(self) -> nn.Module:
        """See the base class; the norm and activation of `fuse_memory` follow the conv."""
        fuse = self.fuse_memory
        kernel = fuse.conv.weight.flatten(1)  # [C, N * Z]
        matrix = kernel @ self.bank.distributions.flatten(1).to(kernel.dtype).t()  # [C, K]
        conv = nn.Conv2d(self.num_classes, self.channels, 1, bias=fuse.conv.bias is not None)
        conv = conv.to(kernel)
        conv.weight.copy_(matrix[..., None, None])
        if fuse.conv.bias is not None:
            conv.bias.copy_(fuse.conv.bias)
        return nn.Sequential(
            conv,
            *([fuse.norm] if fuse.with_norm else []),
            *([fuse.activate] if fuse.with_activation else []),
        )

    def embed(self, pixels: Tensor) -> Tensor:
        """R [B, C, h, w] to unit vectors [B, h, w, Z]."""
        if self.projection is not None:
            return self.projection(pixels)
        return _unit_vectors(pixels.permute(0, 2, 3, 1))

    @torch.no_grad()
    def distribution_map(self, inputs: List[Tensor]) -> Tuple[Tensor, Tensor]:
        """Which distribution each pixel belongs to: the nearest of its predicted class.

        Args:
            inputs (list[Tensor]): Feature maps of the backbone.

        Returns:
            tuple[Tensor]: Predicted class in 0..K-1 and index of the distribution in 0..N-1, both
            int64 [B, h, w], at feature size.
        """
        self._needs_memory('say which distribution a pixel belongs to')
        pixels, _, augmented = self.forward_features(inputs)
        classes = self.cls_seg(augmented).argmax(dim=1)
        embeddings = self.embed(pixels)
        distributions = self.bank.read().to(embeddings.dtype)
        scores = torch.einsum('bhwz,bhwnz->bhwn', embeddings, distributions[classes])
        return classes, scores.argmax(dim=-1)

    def memory_losses(self, pixels: Tensor, labels: Tensor) -> Dict[str, Tensor]:
        """See the base class; the bank is updated by a forward hook on `consistency`."""
        embeddings = self.embed(pixels)
        with torch.autocast(embeddings.device.type, enabled=False):
            output = self.consistency(
                embeddings, self.bank.read(copy=False), labels, self.ignore_index
            )
        losses = dict(output.losses)
        if output.update is not None:
            labelled, correct, left_out = output.update
            losses['acc_distribution'] = 100 * correct / labelled.clamp(min=1)
            losses['stat_left_out_pixels'] = left_out
        return losses

    def _update_bank(
        self, module: nn.Module, inputs: tuple, output: ConsistencyOutput
    ) -> Optional[ConsistencyOutput]:
        """Forward hook: moves the bank after this iteration's losses have seen it."""
        if not self.training:
            return None
        return output._replace(
            update=self.bank.update_from_scores_(
                output.embeddings, output.classes, output.own_scores, output.correct
            )
        )
