"""LinearStemHRNet: HRNet with one activation less, and the same keys."""

import torch
import torch.nn.functional as F
from mmseg.models.backbones import HRNet

from mmseg_cmdl.models import LinearStemHRNet

SMALL = {
    f'stage{number}': dict(
        num_modules=1,
        num_branches=number,
        block='BOTTLENECK' if number == 1 else 'BASIC',
        num_blocks=(1,) * number,
        num_channels=tuple(2 * 2**branch for branch in range(number)),
    )
    for number in range(1, 5)
}


def _stem_output(model, x):
    seen = []
    model.layer1.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    model(x)
    return seen[0]


def test_no_activation_between_the_convs_of_the_stem():
    torch.manual_seed(0)
    ours, plain = LinearStemHRNet(SMALL).double(), HRNet(SMALL).double()
    ours.eval()
    plain.eval()
    assert ours.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)

    def norm(x, layer):
        return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias)

    middle = norm(ours.conv1(x), ours.bn1)
    expected = norm(ours.conv2(middle), ours.bn2).relu()
    torch.testing.assert_close(_stem_output(ours, x), expected, rtol=0, atol=1e-12)
    expected = norm(plain.conv2(middle.relu()), plain.bn2).relu()
    torch.testing.assert_close(_stem_output(plain, x), expected, rtol=0, atol=1e-12)
    assert (_stem_output(ours, x) - expected).abs().max() > 1e-3
