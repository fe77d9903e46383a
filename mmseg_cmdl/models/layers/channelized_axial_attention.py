"""Channelized axial attention: channel weights between the two halves of a dot product (CAA).

Source: Huang et al., Channelized Axial Attention, AAAI 2022, sections 3.2 and 3.3.
"""

from typing import Optional

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...registry import MODELS
from ...utils import check_finite, check_flags


class _ChannelWeights(nn.Module):
    """Mean features [..., C] to a weight in (0, 1) for each channel.

    Linear layers start by Glorot's rule, as in the released code. Through six of them, PyTorch's
    own start leaves gradients several times smaller.
    """

    def __init__(self, channels: int, hidden_channels: int, num_hidden: int):
        super().__init__()
        widths = [channels, *[hidden_channels] * num_hidden]
        layers = []
        for one, next_one in zip(widths, widths[1:]):
            layers += [nn.Linear(one, next_one, bias=False), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], channels, bias=False))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)

    def forward(self, means: Tensor) -> Tensor:
        return self.layers(means).sigmoid()


@MODELS.register_module()
class ChannelizedAxialAttention(BaseModule):
    """Attention along columns, then along rows, each with channel weights of its own.

    The dot product of attention is broken in two: what each pixel j of a column contributes to the
    pixel i, ``A_ij v_j``, and its sum over j. In between, the map of all contributions to row i,
    over the whole image, is averaged and gives a weight for each channel. The map has H times the
    size of the features; it is never formed: its mean is the mean of its sums, and a weight that
    doesn't depend on j can be taken after the sum. The same along rows.

    Args:
        channels (int): C, the channels of the map.
        query_channels (int): Channels of the queries, which are the keys too. Defaults to 64.
        hidden_ratio (float): Width of the hidden layers of the channel weights over C. Defaults to
            0.25.
        num_hidden (int): Number of these layers. Defaults to 5.
        channelize (bool): False is plain axial attention. Defaults to True.
        conv_cfg, norm_cfg, act_cfg (dict, optional): Configs of the 1x1 convs.
        init_cfg (dict, optional): Initialization config.
    """

    def __init__(
        self,
        channels: int,
        query_channels: int = 64,
        hidden_ratio: float = 0.25,
        num_hidden: int = 5,
        channelize: bool = True,
        conv_cfg: Optional[dict] = None,
        norm_cfg: Optional[dict] = None,
        act_cfg: Optional[dict] = dict(type='ReLU'),
        init_cfg: Optional[dict] = None,
    ):
        super().__init__(init_cfg)
        check_finite(self, hidden_ratio=hidden_ratio, num_hidden=num_hidden)
        check_flags(self, channelize=channelize)
        options = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=act_cfg)
        self.column_query, self.row_query = (
            ConvModule(channels, query_channels, 1, **options) for _ in range(2)
        )
        self.value = ConvModule(channels, channels, 1, **options)
        self.column_channels = self.row_channels = None
        if channelize:
            hidden = max(1, int(channels * hidden_ratio))
            self.column_channels, self.row_channels = (
                _ChannelWeights(channels, hidden, num_hidden) for _ in range(2)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        along_columns = (0, 3, 2, 1)  # [B, C, H, W] to [B, W, H, C]
        along_rows = (0, 2, 3, 1)  # to [B, H, W, C]
        values = self.value(x)
        for query, weights, order in (
            (self.column_query, self.column_channels, along_columns),
            (self.row_query, self.row_channels, along_rows),
        ):
            queries = query(x).permute(order)
            attention = (queries @ queries.transpose(2, 3)).softmax(dim=3)
            related = attention @ values.permute(order)  # [B, lines, positions, C]
            if weights is not None:
                # over all pixels of the map of contributions, of which `related` is a sum
                means = related.mean(dim=1, keepdim=True) / related.shape[2]
                related = related * weights(means)
            values = related.permute([order.index(axis) for axis in range(4)])
        return values.contiguous()
