"""Controls: the arm's modules, and nothing that is a memory."""

import pytest
import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from mmseg_cmdl.study import plan
from tests.models.decode_heads import tiny_head


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmseg')


@pytest.fixture
def heads(tiny_config):
    arms = plan.resolve(tiny_config, ['mdrl', 'mcibi@nl', 'car'], controls=[])
    assert [(arm.name, arm.control_of) for arm in arms][4:] == [
        ('mdrl~pixels', 'mdrl'),
        ('mdrl~learned', 'mdrl'),
        ('mcibi@nl~pixels', 'mcibi@nl'),
        ('mcibi@nl~learned', 'mcibi@nl'),
    ]
    return {arm.name: MODELS.build(arm.config.model).decode_head for arm in arms}


def shapes(head):
    return {name: tuple(value.shape) for name, value in head.named_parameters()}


def test_the_same_modules(heads):
    of_memory = ('bank', 'consistency', 'projection')
    for arm in ('mdrl', 'mcibi@nl'):
        own = {n: s for n, s in shapes(heads[arm]).items() if n.split('.')[0] not in of_memory}
        pixels, learned = (shapes(heads[f'{arm}~{kind}']) for kind in ('pixels', 'learned'))
        vectors = learned.pop('vectors')
        assert learned == own
        assert vectors == tuple(
            {'mdrl': heads['mdrl'].bank.distributions.shape}.get(arm, (3, 1, 16))
        )
        assert pixels == {n: s for n, s in own.items() if not n.startswith('fuse_memory')}


def test_pixels_attend_to_themselves(heads):
    head = heads['mdrl~pixels'].eval()
    pixels = torch.randn(2, 16, 4, 4)
    coarse = torch.randn(2, 3, 4, 4)
    expected = head.relation(pixels, pixels)
    torch.testing.assert_close(head.relate(pixels, head.read_memory(coarse)), expected)
    # nothing of the coarse prediction is read
    first = head.aggregate(pixels, coarse)
    assert torch.equal(first, head.aggregate(pixels, -coarse))


def test_learned_vectors_are_read_as_a_memory_and_learn(heads):
    head = heads['mdrl~learned']
    weights = torch.rand(2, 3, 4, 4).softmax(1)
    count, width = head.vectors.shape[1:]
    voted = torch.einsum('bkhw,knz->bnzhw', weights, head.vectors).reshape(2, count * width, 4, 4)
    head.eval()
    torch.testing.assert_close(head.read_memory(weights), head.fuse_memory(voted))

    for name in ('mdrl~learned', 'mcibi@nl~learned', 'mdrl~pixels'):
        head = heads[name].train()
        labels = torch.randint(0, 3, (2, 32, 32))
        losses = head.loss([torch.randn(2, 64, 16, 16)], tiny_head.samples(labels), None)
        assert set(losses) == {'loss_ce', 'acc_seg', 'coarse_loss_ce', 'coarse_acc_seg'}
        sum(v for k, v in losses.items() if 'loss' in k).backward()
        if 'learned' in name:
            assert (head.vectors.grad.flatten(1).norm(dim=1) > 0).all()


def test_controls_of_what_has_no_memory(tiny_config):
    with pytest.raises(plan.StudyError, match='--controls car: no arm of that name has the memory'):
        plan.resolve(tiny_config, ['mdrl', 'car'], controls=['car'])
    arms = plan.resolve(tiny_config, ['mdrl', 'mcibi'], controls=['mcibi'])
    assert [arm.name for arm in arms][3:] == ['mcibi~pixels', 'mcibi~learned']
    assert 'mmseg_cmdl.study.controls' in arms[3].config.custom_imports.imports
