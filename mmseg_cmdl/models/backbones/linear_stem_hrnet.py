"""HRNet without an activation between the two convolutions of its stem."""

from typing import Any, Callable

from mmseg.models.backbones import HRNet
from torch import nn

from ...registry import MODELS


@MODELS.register_module()
class LinearStemHRNet(HRNet):
    """HRNet whose stem is conv, norm, conv, norm, ReLU.

    So is the network of the released MCIBI on Cityscapes; it has no parameter that shows it. For
    anything else use HRNet, whose stem has a ReLU after each norm.

    Args:
        **kwargs: Options of :class:`mmseg.models.backbones.HRNet`. The keys in a checkpoint are the
            same.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # the base class calls it after both norms of the stem, and nowhere else
        self.relu = nn.Identity()
        self.stem_activation = nn.ReLU(inplace=True)

    @property
    def norm2(self) -> Callable:
        """The second norm of the stem, with the activation after it."""
        norm = getattr(self, self.norm2_name)
        return lambda x: self.stem_activation(norm(x))
