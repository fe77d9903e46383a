import math
from contextlib import contextmanager

import pytest
import torch
from mmengine.logging import MessageHub

from mmseg_cmdl.models.memory import InitialMemory
from tests.models.decode_heads import tiny_head
from tests.models.decode_heads.tiny_head import fill
from tests.reference import mcibi, mdrl


@contextmanager
def runner_at(iteration, num_iterations):
    """The message hub as a training runner leaves it in an iteration."""
    hub = MessageHub.get_current_instance()
    values = dict(iter=iteration, max_iters=num_iterations, loop_stage='train')
    before = {key: hub.get_info(key) for key in values}
    hub.update_info_dict(values)
    try:
        yield hub
    finally:
        hub.update_info_dict(before)


def _record_pixels(head):
    seen = []
    head.bottleneck.register_forward_hook(lambda m, args, out: seen.append(out.detach().clone()))
    return seen


# ---- training ----


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('strategy', ['cosine', 'mean'])
@pytest.mark.parametrize('update_size', ['label', 'feature'])
def test_losses_see_the_memory_of_before_and_then_it_moves(update_size, strategy, align_corners):
    head = tiny_head.build_mcibi(
        update_size=update_size,
        bank=dict(type='FeatureBank', strategy=strategy),
        memory_momentum=0.3,
        align_corners=align_corners,
    )
    seen = _record_pixels(head)
    for iteration in range(3):
        before, filled = head.bank.features.clone(), head.bank.filled.clone()
        losses, _ = tiny_head.step(head, seed=iteration)
        pixels, labels = seen[-1], tiny_head.label_maps(iteration)

        assert losses['stat_filled_classes'] == filled.sum()
        assert losses['stat_left_out_pixels'] == 0
        assert losses['stat_memory_momentum'].item() == pytest.approx(0.3)
        logits = _classify(head.state_dict(), before)
        assert losses['memory_loss_ce'].item() == pytest.approx(
            mcibi.memory_loss(logits, filled).item(), rel=1e-6
        )  # the host weighs in float32
        right = (logits.argmax(1) == torch.arange(5)) & filled
        assert losses['acc_memory'].item() == pytest.approx(
            100 * right.sum().item() / max(1, filled.sum().item())
        )

        if update_size == 'label':
            pixels = mdrl.resize(pixels, labels.shape[1:], align_corners)
        else:
            labels = mdrl.nearest_labels(labels, pixels.shape[2:])
        expected, now_filled = mcibi.update(
            before,
            filled,
            pixels.permute(0, 2, 3, 1).flatten(0, 2),
            labels.flatten(),
            0.3,
            strategy,
        )
        torch.testing.assert_close(head.bank.features, expected, rtol=0, atol=1e-11)
        assert torch.equal(head.bank.filled, now_filled)
        assert now_filled.tolist() == [True, True, False, True, True]  # class 2 is absent


def _classify(state, vectors):
    """Eq. 15: H2 on the memory, norm by its running statistics, those of this step included."""
    x = vectors @ state['final_conv.conv.weight'][:, :, 0, 0].T
    x = (x - state['final_conv.bn.running_mean']) / (
        state['final_conv.bn.running_var'] + 1e-5
    ).sqrt() * state['final_conv.bn.weight'] + state['final_conv.bn.bias']
    return x.clamp(min=0) @ state['conv_seg.weight'][:, :, 0, 0].T + state['conv_seg.bias']


def test_memory_loss_trains_the_classifier_and_only_it():
    head = fill(tiny_head.build_mcibi(), empty=(2,))
    losses = head.loss(tiny_head.features(), tiny_head.samples(tiny_head.label_maps()), None)
    losses['memory_loss_ce'].backward()
    touched = {name for name, p in head.named_parameters() if p.grad is not None and p.grad.any()}
    assert {name.split('.')[0] for name in touched} == {'final_conv', 'conv_seg'}
    assert 'final_conv.conv.weight' in touched


def test_memory_leaves_the_running_statistics_of_the_pixels():
    heads = [fill(tiny_head.build_mcibi(loss_memory=loss)) for loss in (None, MEMORY_LOSS)]
    for head in heads:
        head.bank.features.mul_(100)
        tiny_head.step(head)
    assert torch.equal(heads[0].final_conv.bn.running_var, heads[1].final_conv.bn.running_var)
    assert heads[1].final_conv.bn.training
    assert heads[1].final_conv.bn.num_batches_tracked == 1


MEMORY_LOSS = dict(type='CrossEntropyLoss', loss_weight=1.0)


@pytest.mark.parametrize('start', [0, 1, 3])
def test_memory_loss_starts(start):
    head = fill(tiny_head.build_mcibi(memory_loss_start=start))
    values = [tiny_head.step(head, seed)[0]['memory_loss_ce'].item() for seed in range(5)]
    assert [value > 0 for value in values] == [iteration >= start for iteration in range(5)]
    assert all(value == 0 for value in values[:start])


def test_several_memory_losses_and_none():
    both = fill(
        tiny_head.build_mcibi(
            loss_memory=[
                dict(type='CrossEntropyLoss', loss_weight=2.0),
                dict(type='CrossEntropyLoss', loss_weight=1.0, loss_name='loss_again'),
            ]
        )
    )
    one, none = fill(tiny_head.build_mcibi()), fill(tiny_head.build_mcibi(loss_memory=None))
    losses, _ = tiny_head.step(both)
    single, _ = tiny_head.step(one)
    assert losses['memory_loss_ce'].item() == pytest.approx(2 * single['memory_loss_ce'].item())
    assert losses['memory_loss_again'].item() == pytest.approx(single['memory_loss_ce'].item())
    before = none.bank.features.clone()
    losses, grads = tiny_head.step(none)
    assert not any(key.startswith('memory_') for key in losses)
    assert 'acc_memory' not in losses
    assert not torch.equal(none.bank.features, before)
    assert all(grad is not None for grad in grads.values())


@pytest.mark.parametrize('bad', [math.nan, math.inf])
@pytest.mark.parametrize('update_size', ['label', 'feature'])
def test_non_finite_features_never_reach_the_memory(bad, update_size):
    head = fill(tiny_head.build_mcibi(update_size=update_size))
    calls = []

    def poison(module, inputs, out):
        out = out.clone()
        out[0, 1, 2, 3] = bad
        calls.append(1)
        return out

    handle = head.bottleneck.register_forward_hook(poison)
    losses = head.loss(
        tiny_head.features(), tiny_head.samples(tiny_head.label_maps(ignored=0.0)), None
    )
    assert calls
    shares = torch.zeros(1, 1, 5, 6)
    shares[..., 2, 3] = 1
    expected = (mdrl.resize(shares, tiny_head.LABEL_SIZE) > 0).sum()
    assert losses['stat_left_out_pixels'] == (1 if update_size == 'feature' else expected)
    assert expected > 40
    assert head.bank.features.isfinite().all()
    handle.remove()


# ---- momentum ----


def test_momentum_is_eq_7():
    head = tiny_head.build_mcibi(memory_momentum=0.8, momentum_power=0.5)
    for iteration in (0, 1, 500, 999, 1000, 1500):
        with runner_at(iteration, 1000):
            expected = mcibi.momentum(min(iteration, 1000), 1000, 0.8, 0.5)
            assert head.momentum.now(head.bank.num_updates) == pytest.approx(expected, rel=1e-12)
    assert mcibi.momentum(0, 10) == pytest.approx(0.9)
    assert mcibi.momentum(10, 10) == pytest.approx(0.009)


def test_momentum_reaches_the_memory():
    """The runner's number of iterations counts, also where the head has been told another."""
    for iteration, expected in ((0, 0.9), (50, mcibi.momentum(50, 100))):
        bank = dict(type='FeatureBank', strategy='mean')
        head = fill(tiny_head.build_mcibi(bank=bank, max_iters=4))
        seen, before = _record_pixels(head), head.bank.features.clone()
        with runner_at(iteration, 100):
            losses, _ = tiny_head.step(head)
        assert losses['stat_memory_momentum'].item() == pytest.approx(expected)
        pixels = mdrl.resize(seen[0], tiny_head.LABEL_SIZE).permute(0, 2, 3, 1).flatten(0, 2)
        after, _ = mcibi.update(
            before, torch.ones(5).bool(), pixels, tiny_head.label_maps().flatten(), expected, 'mean'
        )
        torch.testing.assert_close(head.bank.features, after, rtol=0, atol=1e-11)


def test_momentum_is_constant_without_a_runner_or_with_power_0():
    head = tiny_head.build_mcibi()
    assert head.momentum.now(head.bank.num_updates) == 0.9
    with runner_at(70, 100) as hub:
        assert head.momentum.now(head.bank.num_updates) < 0.5
        assert tiny_head.build_mcibi(momentum_power=0.0).momentum.now(
            torch.zeros(())
        ) == pytest.approx(0.9)
        hub.update_info('loop_stage', None)  # as a runner that is done leaves it
        assert head.momentum.now(head.bank.num_updates) == 0.9


# ---- starting from a file ----


def _initial(head, num_classes=5, num=1, channels=8, **options):
    g = torch.Generator().manual_seed(3)
    filled = torch.ones(num_classes, num, dtype=torch.bool)
    filled[1] = False
    centers = torch.randn(num_classes, num, channels, generator=g) * filled[..., None]
    state = {
        key: value.float() + 1
        for key, value in head.state_dict().items()
        if key.startswith(('bottleneck.', 'projection.'))
    }
    return InitialMemory(
        centers,
        filled,
        torch.full((num_classes,), 7),
        [str(c) for c in range(num_classes)],
        **{'embedding': state, **options},
    )


@pytest.mark.parametrize('kind', ['MCIBIHead', 'MDRLHead'])
def test_memory_starts_from_a_file(kind, tmp_path):
    """Vectors, and the layers that made them; classes that the file has not as ever."""
    build, key, num = {
        'MCIBIHead': (tiny_head.build_mcibi, 'features', 1),
        'MDRLHead': (tiny_head.build, 'distributions', 3),
    }[kind]
    path = str(tmp_path / 'memory.pth')
    memory = _initial(build(torch.float32), num=num)
    memory.save(path)
    kind = dict(MCIBIHead=dict(type='FeatureBank'), MDRLHead=tiny_head.BANK)[kind]
    head = build(torch.float32, seed=5, bank=dict(kind, init=path))
    start = getattr(head.bank, key).clone()
    head.init_weights()
    rows = getattr(head.bank, key)
    for name, value in memory.embedding.items():
        assert torch.equal(head.state_dict()[name], value.to(head.state_dict()[name])), name
    assert torch.equal(rows[1], start[1])
    if num == 1:
        assert torch.equal(rows, memory.centers[:, 0])
        assert head.bank.filled.tolist() == [True, False, True, True, True]
    else:
        torch.testing.assert_close(rows[[0, 2]], mdrl.unit(memory.centers[[0, 2]]))
    losses, _ = tiny_head.step(head)
    assert all(value.isfinite().all() for value in losses.values())
    head.bank.features = None
    moved = {name: value.clone() for name, value in head.state_dict().items()}
    head.init_weights()  # a second time changes nothing
    assert all(torch.equal(value, moved[name]) for name, value in head.state_dict().items())


def test_a_head_that_predicts_does_not_need_the_file():
    head = tiny_head.build_mcibi(bank=dict(type='FeatureBank', init='gone.pth'))
    other = fill(tiny_head.build_mcibi())
    head.load_state_dict(other.state_dict())
    torch.testing.assert_close(
        head.eval()(tiny_head.features()), other.eval()(tiny_head.features())
    )
    with pytest.raises(FileNotFoundError, match=r'gone\.pth.*init_memory\.py'):
        head.init_weights()


def test_wrong_files_are_named(tmp_path):
    path = str(tmp_path / 'memory.pth')

    def fails(words, **options):
        with pytest.raises(ValueError, match=r'memory\.pth') as error:
            tiny_head.build_mcibi(
                bank=dict(type='FeatureBank', init=path), **options
            ).init_weights()
        for word in words:
            assert word in str(error.value)

    (tmp_path / 'memory.pth').write_text('nothing')
    fails(['tools/init_memory.py'])
    torch.save(dict(state_dict={}), path)
    fails(['tools/init_memory.py'])
    plain = tiny_head.build_mcibi()
    _initial(plain, num_classes=4).save(path)
    fails(['4x1x8', '5x1x8'])
    _initial(plain, num=3).save(path)
    fails(['5x3x8', '--centers 1'])
    _initial(plain, embedding={'projection.norm.weight': torch.ones(8)}).save(path)
    fails(['projection.norm.weight'])
    _initial(plain, embedding={'bottleneck.conv.weight': torch.ones(8)}).save(path)
    fails(['bottleneck.conv.weight'])


# ---- a loop without mmengine's Runner ----


def test_momentum_is_annealed_by_the_number_of_updates_where_no_runner_trains():
    head = tiny_head.build_mcibi(memory_momentum=0.8, momentum_power=0.5, max_iters=4)
    momenta = [tiny_head.step(head, seed)[0]['stat_memory_momentum'].item() for seed in range(6)]
    expected = [mcibi.momentum(min(t, 4), 4, 0.8, 0.5) for t in range(6)]
    assert momenta == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(('options', 'times'), [
    (dict(), 1), (dict(max_iters=9), 0), (dict(momentum_power=0), 0),
])  # fmt: skip
def test_a_momentum_that_nobody_anneals_is_said_once(options, times, monkeypatch):
    said = []
    monkeypatch.setattr(
        'mmseg_cmdl.models.decode_heads.mcibi_head.print_log', lambda text, *args: said.append(text)
    )
    head = tiny_head.build_mcibi(**options)
    for seed in range(3):
        tiny_head.step(head, seed)
    assert len(said) == times
    assert all('Set max_iters of the head' in text for text in said)
