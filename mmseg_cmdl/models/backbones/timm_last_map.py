"""The last feature map of a network of timm, that which it pools and classifies."""

from typing import Any, List

from mmseg.models.backbones import TIMMBackbone
from torch import Tensor

from ...registry import MODELS


@MODELS.register_module()
class TIMMLastMap(TIMMBackbone):
    """TIMMBackbone that gives one map, after the network's last conv, norm and activation.

    `features_only=True` of timm ends with the last stage. An EfficientNet has another conv after
    that, to 2048 channels in B5, which are the features of the released CAA and CAR.

    Args:
        model_name (str): Name in timm.
        pretrained (bool): Let timm fetch its weights. Defaults to True.
        **kwargs: Others of :class:`mmseg.models.backbones.TIMMBackbone`, which hands on those of
            the network, as `output_stride` and `drop_path_rate`.

    Raises:
        RuntimeError: timm isn't installed.
    """

    def __init__(self, model_name: str, pretrained: bool = True, **kwargs: Any):
        super().__init__(model_name, features_only=False, pretrained=pretrained, **kwargs)

    def forward(self, x: Tensor) -> List[Tensor]:
        """Images [B, 3, H, W] to one map [B, C, h, w], in a list."""
        return [self.timm_model.forward_features(x)]
