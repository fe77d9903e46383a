"""Half precision and features that no network should give: finite, near, and counted."""

import math

import pytest
import torch
from mmengine.optim import AmpOptimWrapper

from tests.guarantees import cases

# Losses of one training step against float32, relative. bfloat16 has 8 bits of mantissa, float16
# 11; the longest chain here is a dozen convolutions.
TOLERANCE = {torch.bfloat16: 0.08, torch.float16: 0.02}
DEVICES = ['cpu'] + (['cuda'] if torch.cuda.is_available() else [])


def check_memory(model):
    for key, value in cases.memory(model).items():
        assert value.isfinite().all(), key
        if key.endswith('distributions'):
            assert value.dtype == torch.float32
            lengths = value.norm(dim=-1)
            torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-5)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('name', cases.CASES)
def test_autocast_is_near_float32(name, dtype, device):
    full, half = (cases.build(name, norm='GN').to(device) for _ in range(2))
    images, samples = cases.batch()
    images, samples = images.to(device), [sample.to(device) for sample in samples]
    expected = full.loss(images, samples)
    with torch.autocast(device, dtype):
        got = half.loss(images, samples)
    cases.objective(expected).backward()
    cases.objective(got).backward()
    for key, value in expected.items():
        if 'loss' not in key:
            continue
        assert got[key].isfinite(), key
        assert got[key].item() == pytest.approx(
            value.item(), rel=TOLERANCE[dtype], abs=TOLERANCE[dtype] / 10
        ), key
    for key, p in half.named_parameters():
        assert p.grad is not None, key
        assert p.grad.isfinite().all(), key
    check_memory(half)
    similar = [
        torch.cosine_similarity(a.grad.flatten(), b.grad.flatten(), dim=0)
        for a, b in zip(full.parameters(), half.parameters()) if a.grad.norm() > 1e-3
    ]  # fmt: skip
    assert len(similar) > 5
    assert torch.stack(similar).median() > 0.98


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('name', cases.METHODS)
def test_training_under_amp_optim_wrapper(name, dtype, device, monkeypatch):
    """mmengine's wrapper for ten steps; the loss goes down, weights stay finite."""
    model = cases.build(name, norm='GN').to(device)
    if device == 'cpu':
        # the wrapper asks for a GPU, though autocast and a disabled scaler work without one
        import mmengine.optim.optimizer.amp_optimizer_wrapper as module

        monkeypatch.setattr(module, 'is_cuda_available', lambda: True)
        scaler = torch.cuda.amp.GradScaler(enabled=False)
        monkeypatch.setattr(module, 'GradScaler', lambda *a, **k: scaler)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    wrapper = AmpOptimWrapper(dtype=dtype, optimizer=optimizer)
    totals = []
    for _ in range(10):
        images, samples = cases.batch(0)
        images, samples = images.to(device), [sample.to(device) for sample in samples]
        with torch.autocast(device, getattr(torch, dtype)):
            total = cases.objective(model.loss(images, samples))
        wrapper.update_params(total)
        totals.append(total.item())
    assert all(map(math.isfinite, totals))
    assert totals[-1] < totals[0]
    for key, value in model.state_dict().items():
        assert value.isfinite().all(), key
    check_memory(model)


def _spoil(kind, maps):
    if kind == 'times 1e4':
        return maps * 1e4
    if kind == 'all equal':
        return torch.ones_like(maps)
    if kind == 'all zero':
        return torch.zeros_like(maps)
    maps = maps.clone()
    maps[0, :, 2, 3] = float(kind)
    return maps


def spoiled_step(name, kind, labels=None):
    """Losses of a step whose bottleneck (or backbone) gives such features."""
    model = cases.build(name, norm='GN', auxiliary=False)
    head = model.decode_head
    place = getattr(head, 'bottleneck', model.backbone)
    memory_head = hasattr(head, 'bank')
    hook = place.register_forward_hook(
        lambda module, inputs, output: _spoil(kind, output) if torch.is_tensor(output)
        else [_spoil(kind, x) for x in output])  # fmt: skip
    images, samples = cases.batch(labels=labels)
    losses = model.loss(images, samples)
    hook.remove()
    return model, losses, memory_head


@pytest.mark.parametrize('kind', ['times 1e4', 'all equal', 'all zero'])
@pytest.mark.parametrize('name', cases.CASES)
def test_extreme_features(name, kind):
    """Losses, gradients and banks stay finite; nothing is left out."""
    model, losses, _ = spoiled_step(name, kind)
    cases.objective(losses).backward()
    for key, value in losses.items():
        assert torch.as_tensor(value).isfinite().all(), key
    for key, p in model.named_parameters():
        assert p.grad is None or p.grad.isfinite().all(), key
    check_memory(model)
    for key, value in losses.items():
        if key.endswith('stat_left_out_pixels'):
            assert value == 0


@pytest.mark.parametrize('kind', ['nan', 'inf', '-inf'])
@pytest.mark.parametrize('name', [n for n in cases.CASES if n.startswith(('mdrl', 'mcibi'))])
def test_one_pixel_that_is_not_finite(name, kind):
    """It never reaches the bank, the others do, and a scalar counts it."""
    labels = cases.label_maps()
    labels[labels == 255] = 0
    model, losses, _ = spoiled_step(name, kind, labels)
    check_memory(model)
    key = next(k for k in cases.memory(model) if k.endswith(('distributions', 'features')))
    start = cases.memory(cases.build(name, norm='GN', auxiliary=False))[key]
    assert not torch.equal(cases.memory(model)[key], start)  # the other pixels moved it
    counted = [value for k, value in losses.items() if k.endswith('stat_left_out_pixels')]
    assert len(counted) == 1
    assert counted[0] >= 1
