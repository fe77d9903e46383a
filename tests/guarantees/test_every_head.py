"""What every head keeps to in a step, whatever it learns."""

import copy

import pytest
import torch

from tests.guarantees import cases
from tests.reference.dispatch import CountOps

ALL = pytest.mark.parametrize('name', cases.CASES)
WITH_MEMORY = pytest.mark.parametrize('name', cases.WITH_MEMORY)


def assert_unmoved(model, before):
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


@ALL
def test_a_step_has_no_loop_over_classes_and_waits_for_no_device(name, monkeypatch):
    """As many operations for nine classes as for four, none of which asks the device for a value.

    MMSegmentation's accuracy indexes with a mask, so it is taken out first.
    """
    for module in (
        'mmseg.models.decode_heads.decode_head',
        'mmseg_cmdl.models.decode_heads.dataset_context_head',
    ):
        monkeypatch.setattr(f'{module}.accuracy', lambda *args, **kwargs: torch.zeros(()))
    counts = []
    for num_classes in (4, 9):
        model = cases.build(name, num_classes=num_classes)
        labels = cases.label_maps(num_classes=num_classes)
        cases.step(model, labels=labels)  # gradients exist
        with CountOps() as ops:
            cases.step(model, labels=labels)
        assert not ops.synchronising
        counts.append(ops.total)
    assert counts[0] == counts[1]


@WITH_MEMORY
def test_the_memory_moves_in_training_only(name):
    """Not in a prediction, whatever the mode, nor in a validation loss; and nothing is drawn."""
    model = cases.build(name, norm='GN')
    cases.step(model)
    before = copy.deepcopy(model.state_dict())
    images, samples = cases.batch(1)
    random_state = torch.get_rng_state()
    for mode in (True, False):
        model.train(mode)
        with torch.no_grad():
            first, second = (model(images) for _ in range(2))
            model.predict(images, samples)
        assert torch.equal(first, second)
        assert_unmoved(model, before)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.loss(images, samples)
    assert_unmoved(model, before)
    model.train()
    model.loss(images, samples)
    moved = cases.memory(model)
    assert any(not torch.equal(value, before[key]) for key, value in moved.items())


@pytest.mark.parametrize('norm', ['BN', 'GN'])
@ALL
def test_two_forward_passes_and_one_backward(name, norm):
    """Each keeps the memory that it has read: the gradient is that of one and then the other."""
    together = cases.build(name, dtype=torch.float64, norm=norm)
    cases.step(together)
    together.zero_grad()
    apart = copy.deepcopy(together)
    losses = []
    for seed in (1, 2):
        images, samples = cases.batch(seed, dtype=torch.float64)
        losses.append(cases.objective(together.loss(images, samples)))
        cases.step(apart, seed)
    sum(losses).backward()
    for key, p in together.named_parameters():
        expected = apart.get_parameter(key).grad
        torch.testing.assert_close(p.grad, expected, rtol=0, atol=1e-11, msg=key)


@ALL
def test_a_batch_that_is_ignored_whole(name):
    """Every loss is 0 and can be differentiated, no gradient is missing, the memory stays."""
    model = cases.build(name, norm='GN')
    cases.step(model)
    model.zero_grad()
    before = {key: value.clone() for key, value in cases.memory(model).items()}
    losses, _ = cases.step(model, labels=torch.full((2, *cases.SIZE), 255))
    for key, value in losses.items():
        for x in value if isinstance(value, list) else [value]:
            assert x.isfinite(), key
            if 'loss' in key and name != 'car_released':  # its constants count ignored pixels
                assert x.item() == 0 or 'memory_loss' in key, key
                assert x.requires_grad, key
    for key, p in model.named_parameters():
        assert p.grad is not None, key
        assert not p.grad.any() or name in ('car_released', *IN_MEMORY), key
    for key, value in cases.memory(model).items():
        if not key.endswith('num_updates'):
            assert torch.equal(value, before[key]), key


# whose classifier learns the memory itself, with or without a labelled pixel
IN_MEMORY = [name for name in cases.CASES if name.startswith('mcibi') and 'mcibipp' not in name]
