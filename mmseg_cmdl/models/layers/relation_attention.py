"""Pixels attend to the memory context (MDRL, eq. 10 and 11; MCIBI, eq. 13 and 14)."""

from typing import Optional

import torch
import torch.nn.functional as F
from mmseg.models.utils import SelfAttentionBlock
from torch import Tensor

from ...registry import MODELS
from ...utils import at_least_float32, check_counts, check_flags


@MODELS.register_module()
class RelationAttention(SelfAttentionBlock):
    """MMSegmentation's attention block on maps, through `scaled_dot_product_attention`.

    ``P = softmax(g_a(query) g_b(key)^T / sqrt(transform_channels))``, ``out = g_c(P g_f(key))``.
    The fused kernel holds no [hw, hw] matrix where the device has one.

    Args:
        query_channels (int): Channels of the query map (R).
        key_channels (int): Channels of the key map (R_m, or a context map).
        transform_channels (int): Channels of query, key and value inside.
        out_channels (int, optional): Channels of the result. Defaults to `query_channels`.
        share_key_query (bool): One projection for key and query. Defaults to False.
        key_query_num_convs (int): 1x1 convs of g_a and of g_b. Defaults to 2.
        value_out_num_convs (int): 1x1 convs of g_f and of g_c. Defaults to 1.
        key_query_norm (bool): Norm and activation in g_a and g_b; plain convs if False.
        value_out_norm (bool): The same for g_f and g_c.
        matmul_norm (bool): Divide the products by sqrt(transform_channels). Defaults to True.
        with_out_project (bool): Whether there is g_c; without it g_f gives `out_channels`.
            Defaults to True.
        key_stride (int): Keys and values are averaged over squares of so many pixels first. Ours,
            for maps of many pixels; the papers have none. Defaults to 1.
        conv_cfg, norm_cfg, act_cfg (dict, optional): Configs of the ConvModules.
    """

    def __init__(
        self,
        query_channels: int,
        key_channels: int,
        transform_channels: int,
        out_channels: Optional[int] = None,
        share_key_query: bool = False,
        key_query_num_convs: int = 2,
        value_out_num_convs: int = 1,
        key_query_norm: bool = True,
        value_out_norm: bool = True,
        matmul_norm: bool = True,
        with_out_project: bool = True,
        key_stride: int = 1,
        conv_cfg: Optional[dict] = None,
        norm_cfg: Optional[dict] = dict(type='BN'),
        act_cfg: Optional[dict] = dict(type='ReLU'),
    ):
        if share_key_query and query_channels != key_channels:
            raise ValueError(
                'RelationAttention: share_key_query needs maps of equal channels, got '
                f'query_channels={query_channels} and key_channels={key_channels}'
            )
        check_counts(self, key_stride=key_stride)
        check_flags(
            self,
            share_key_query=share_key_query,
            key_query_norm=key_query_norm,
            value_out_norm=value_out_norm,
            matmul_norm=matmul_norm,
            with_out_project=with_out_project,
        )
        super().__init__(
            key_in_channels=key_channels,
            query_in_channels=query_channels,
            channels=transform_channels,
            out_channels=query_channels if out_channels is None else out_channels,
            share_key_query=share_key_query,
            query_downsample=None,
            key_downsample=None,
            key_query_num_convs=key_query_num_convs,
            value_out_num_convs=value_out_num_convs,
            key_query_norm=key_query_norm,
            value_out_norm=value_out_norm,
            matmul_norm=matmul_norm,
            with_out=with_out_project,
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg,
            act_cfg=act_cfg,
        )
        self.key_stride = key_stride

    def forward(self, query_feats: Tensor, key_feats: Tensor) -> Tensor:
        """Relates two maps.

        Args:
            query_feats (Tensor): [B, query_channels, h, w].
            key_feats (Tensor): [B, key_channels, h', w'], of any size.

        Returns:
            Tensor: [B, out_channels, h, w].

        Raises:
            ValueError: A single key is left, and norms that need more, as all do in training.
        """
        keys = self._averaged(key_feats) if self.key_stride > 1 else key_feats
        try:
            projected = (
                self.query_project(query_feats),
                self.key_project(keys),
                self.value_project(keys),
            )
        except ValueError as error:
            if keys[:, 0].numel() > 1 or key_feats[0, 0].numel() == 1:
                raise
            # PyTorch doesn't say that the map isn't what is too small
            height, width = key_feats.shape[2:]
            raise ValueError(
                f'{type(self).__name__}: key_stride={self.key_stride} leaves a single key of a map '
                f'of {height}x{width} and a batch of one image, and the norms need more. Set a '
                'smaller key_stride, or take larger images or batches'
            ) from error
        # [B, 1, hw, channels]
        query, key, value = (x.flatten(2).transpose(1, 2).unsqueeze(1) for x in projected)
        scale = self.channels**-0.5 if self.matmul_norm else 1.0
        related = F.scaled_dot_product_attention(query, key, value, scale=scale)
        related = related.squeeze(1).transpose(1, 2)
        related = related.unflatten(2, query_feats.shape[2:])
        return related if self.out_project is None else self.out_project(related)

    def _averaged(self, feats: Tensor) -> Tensor:
        """Means over squares of `key_stride` pixels; the last of a row or column may be smaller.

        By padding, not by `ceil_mode`, whose condition on sizes torch.export can't keep open.
        """
        side, place = self.key_stride, (0, self.key_stride - 1, 0, self.key_stride - 1)
        # means, since sums of many pixels leave the range of float16
        means, inside = (
            F.avg_pool2d(F.pad(x, place), side)
            for x in (feats, at_least_float32(torch.ones_like(feats[:1, :1])))
        )
        return (means / inside).to(feats.dtype)
