"""The memory that CONTRIBUTING.md builds, trained."""

import re

import pytest
import torch
from mmseg.registry import MODELS

from tests.models.decode_heads import tiny_head
from tests.paths import ROOT


@pytest.fixture(scope='module')
def example():
    """The module that the page shows."""
    (code,) = re.findall(
        r'^```python\n(.*?)^```', (ROOT / 'CONTRIBUTING.md').read_text(), re.S | re.M
    )
    scope = {'__name__': 'class_mean_example'}
    exec(compile(code, 'CONTRIBUTING.md', 'exec'), scope)
    yield scope
    for name in ('ClassMeanBank', 'ClassMeanHead'):
        MODELS.module_dict.pop(name)


def test_the_memory_is_the_mean_of_all_pixels(example):
    torch.manual_seed(0)
    config = dict(
        type='ClassMeanHead', in_channels=6, channels=8, num_classes=4, norm_cfg=dict(type='BN'),
        align_corners=False,
    )  # fmt: skip
    head = MODELS.build(config).train()
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    seen = []
    head.bottleneck.register_forward_hook(lambda module, inputs, output: seen.append(output))
    pixels, classes, history = [], [], []
    labels = torch.randint(0, 3, (2, 8, 8))  # class 3 never comes
    labels[0, 0] = 255
    maps = [torch.randn(2, 6, 8, 8) + labels[:, None].clamp(max=3)]
    for _ in range(30):
        losses = head.loss(maps, tiny_head.samples(labels), None)
        total = sum(value for name, value in losses.items() if 'loss' in name)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        pixels.append(seen.pop().detach().permute(0, 2, 3, 1).flatten(0, 2))
        classes.append(labels.flatten())
        history.append(float(total))
    pixels, classes = torch.cat(pixels).double(), torch.cat(classes)
    for index in range(3):
        expected = pixels[classes == index].mean(dim=0)
        torch.testing.assert_close(head.bank.means[index].double(), expected, rtol=1e-4, atol=1e-5)
        assert head.bank.counts[index] == (classes == index).sum()
    assert head.bank.filled_classes().tolist() == [True, True, True, False]
    assert history[-1] < 0.9 * history[0]

    before = head.bank.means.clone()
    with torch.no_grad():
        head.loss(maps, tiny_head.samples(labels), None)
    assert torch.equal(head.bank.means, before), 'without gradients it stands still'
    copied = MODELS.build(config)
    copied.load_state_dict(head.state_dict())
    torch.testing.assert_close(copied.eval()(maps), head.eval()(maps))
