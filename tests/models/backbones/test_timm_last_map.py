"""TIMMLastMap: the map after a timm network's last conv, and what timm is asked for."""

from types import SimpleNamespace

import torch
from mmengine.config import Config
from mmseg.models.backbones import timm_backbone
from mmseg.registry import MODELS
from torch import nn

from tests.paths import ROOT


class Network(nn.Module):
    """The parts of timm's EfficientNet: stages, the last conv, pooling and classifier."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Conv2d(3, 4, 8, stride=8)
        self.conv_head, self.bn2 = nn.Conv2d(4, 6, 1), nn.Sequential(nn.BatchNorm2d(6), nn.SiLU())
        self.global_pool, self.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 10)

    def forward_features(self, x):
        return self.bn2(self.conv_head(self.blocks(x)))

    def forward(self, x):
        return self.classifier(self.global_pool(self.forward_features(x)).flatten(1))


def test_gives_the_map_that_the_network_classifies(monkeypatch):
    asked = []

    def create_model(**options):
        asked.append(options)
        return Network()

    monkeypatch.setattr(timm_backbone, 'timm', SimpleNamespace(create_model=create_model))
    base = Config.fromfile(ROOT / 'configs' / '_base_' / 'models' / 'caa_efficientnet-b5-d8.py')
    backbone = MODELS.build(base.model.backbone).eval()
    assert asked == [
        dict(
            model_name='tf_efficientnet_b5', features_only=False, pretrained=True, in_chans=3,
            checkpoint_path='', output_stride=8, drop_path_rate=0.4,
        ),
    ]  # fmt: skip
    x = torch.rand(2, 3, 24, 16)
    (got,) = backbone(x)
    net = backbone.timm_model
    kernel = net.conv_head.weight[:, :, 0, 0]
    expected = torch.einsum('kc,bchw->bkhw', kernel, net.blocks(x))
    expected = (expected + net.conv_head.bias[:, None, None]) / (1 + net.bn2[0].eps) ** 0.5
    torch.testing.assert_close(got, expected * expected.sigmoid())
    assert got.shape == (2, 6, 3, 2)
    # no parameter that gets no gradient: of several processes, all would wait for it
    assert not any(key.startswith('timm_model.classifier') for key in backbone.state_dict())
    assert (base.model.decode_head.in_channels, base.model.decode_head.in_index) == (2048, 0)
