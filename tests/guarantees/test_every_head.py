"""What every head keeps to in a step, whatever it learns."""

import copy
import operator

import pytest
import torch

from tests import stack
from tests.guarantees import cases
from tests.reference.dispatch import CountOps

ALL = pytest.mark.parametrize('name', cases.CASES)
WITH_MEMORY = pytest.mark.parametrize('name', cases.WITH_MEMORY)


def assert_unmoved(model, before):
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


@ALL
def test_a_step_has_no_loop_over_classes_and_waits_for_no_device(name, monkeypatch):
    """As many operations for nine classes with five distributions each as for four with two, none
    of which asks the device for a value.

    MMSegmentation's accuracy indexes with a mask, so it is taken out first.
    """
    for module in (
        'mmseg.models.decode_heads.decode_head',
        'mmseg_cmdl.models.decode_heads.dataset_context_head',
    ):
        monkeypatch.setattr(f'{module}.accuracy', lambda *args, **kwargs: torch.zeros(()))
    counts, bank = [], cases.CASES[name]['head'].get('bank')
    for num_classes, num in ((4, 2), (9, 5)):
        options = dict(bank=dict(bank, num_distributions=num)) if bank else {}
        model = cases.build(name, num_classes=num_classes, head_options=options)
        labels = cases.label_maps(num_classes=num_classes)
        cases.step(model, labels=labels)  # gradients exist
        with CountOps() as ops:
            cases.step(model, labels=labels)
        assert not ops.synchronising
        counts.append(ops.total)
    assert counts[0] == counts[1]


@ALL
def test_every_parameter_is_trained(name):
    """So DistributedDataParallel needs no `find_unused_parameters`, and no layer is idle.

    In the second step: then there is a memory to read, and what starts as zeros has moved.
    """
    model = cases.build(name, dtype=torch.float64, norm='GN')
    cases.step(model)
    torch.optim.SGD(model.parameters(), lr=0.05).step()
    model.zero_grad()
    cases.step(model, 1)
    for key, p in model.named_parameters():
        assert p.grad is not None, key
        assert p.grad.isfinite().all(), key
        assert p.grad.any(), key


@ALL
def test_an_image_is_predicted_as_in_its_batch(name):
    model = cases.build(name, dtype=torch.float64)
    cases.step(model)
    model.eval()
    images, _ = cases.batch(1, dtype=torch.float64)
    for i, together in enumerate(model(images)):
        torch.testing.assert_close(model(images[i : i + 1])[0], together, rtol=0, atol=1e-11)


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
            if key.endswith(('acc_distribution', 'stat_left_out_pixels')):
                assert x == 0, key
    for key, p in model.named_parameters():
        assert p.grad is not None, key
        assert not p.grad.any() or name in ('car_released', *IN_MEMORY), key
    for key, value in cases.memory(model).items():
        if not key.endswith('num_updates'):
            assert torch.equal(value, before[key]), key


@ALL
def test_a_wrong_label_is_named(name):
    """In a sentence, with the image that has it, before anything has moved."""
    model = cases.build(name, norm='GN')
    before = copy.deepcopy(model.state_dict())
    for value in (-1, cases.NUM_CLASSES, 77, 254):
        images, samples = cases.batch()
        samples[1].gt_sem_seg.data[0, 3, 4] = value
        for sample in samples:
            sample.set_metainfo(dict(reduce_zero_label=False))
        with pytest.raises(ValueError, match='reduce_zero_label') as error:
            model.loss(images, samples)
        for said in (f'labels [{value}] of image_1.png', 'num_classes=5', '255'):
            assert said in str(error.value)
        assert 'image_0.png' not in str(error.value)
        assert_unmoved(model, before)


# whose classifier learns the memory itself, with or without a labelled pixel
IN_MEMORY = [name for name in cases.CASES if name.startswith('mcibi') and 'mcibipp' not in name]


# the heads that had an option of when to check labels
CHECKED_LABELS = ('mdrl', 'mcibi', 'mcibipp', 'car', 'dgcw', 'caa', 'cp')


@pytest.mark.parametrize(
    ('name', 'option'),
    [
        *((name, dict(check_labels='always')) for name in CHECKED_LABELS),
        *((name, dict(fuse_losses=False)) for name in ('mdrl', 'car')),
    ],
)
def test_options_without_effect_are_taken_and_told(name, option):
    (key,) = option
    with pytest.warns(FutureWarning, match=rf'(Head|Regularization): {key}=.* has no effect'):
        model = cases.build(name, **(option if name == 'car' else dict(head_options=option)))
    (got, _), (expected, _) = cases.step(model), cases.step(cases.build(name))
    cases.assert_same(got, expected)


@stack.needs_export
@pytest.mark.parametrize('name', ['mdrl', 'mcibi', 'mcibipp', 'protoseg', 'dgcw', 'dgcw_aspp'])
def test_exports_with_dynamic_shapes_and_plain_operations(name):
    """torch.export of the head as it is: dynamic batch and size, nothing written, plain only."""
    head = cases.build(name, head_options=dict(in_index=0)).decode_head.eval()

    class Forward(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = head

        def forward(self, x):
            return self.head([x])

    dims = {
        0: torch.export.Dim('batch', min=1, max=16),
        2: torch.export.Dim('h', min=6, max=64),
        3: torch.export.Dim('w', min=6, max=64),
    }
    channels = cases.CHANNELS[-1]
    example = (torch.randn(2, channels, 12, 13),)
    program = torch.export.export(Forward(), example, dynamic_shapes=(dims,))
    operations = {str(node.target) for node in program.graph.nodes if node.op == 'call_function'}
    operations.discard(str(operator.getitem))  # of several outputs, not of a tensor
    for word in ('einsum', 'nonzero', 'rand', 'dropout', 'index_put', 'copy_', 'item'):
        assert not any(word in operation for operation in operations), (word, operations)
    assert not program.graph_signature.buffers_to_mutate
    for shape in [(2, channels, 12, 13), (1, channels, 17, 9)]:
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), head([x]))
