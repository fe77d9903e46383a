"""docs/how-it-works.md names what is there: classes, methods, parts of a head, files."""

import re

import pytest
from mmseg.registry import HOOKS, MODELS
from torch import nn

from mmseg_cmdl import models, utils
from mmseg_cmdl.models import decode_heads, losses, memory
from mmseg_cmdl.models.decode_heads import (
    dataset_context_head,
    label_check,
    mdrl_head,
    memory_head,
    single_image_context,
)
from mmseg_cmdl.models.segmentors import class_aware_regularization
from tests.models.decode_heads import tiny_head
from tests.paths import ROOT

PAGE = ROOT / 'docs' / 'how-it-works.md'
MODULES = (
    models, utils, decode_heads, losses, memory, dataset_context_head, label_check, mdrl_head,
    memory_head, single_image_context, class_aware_regularization,
)  # fmt: skip
# of the config, of PyTorch and of the equations
OTHER = {'context', 'import mmseg_cmdl', '1 - cosine', 'conv_seg'}


def names():
    text = PAGE.read_text()
    found = set(re.findall(r'`([^`]+)`', text))
    return sorted(name for name in found if name not in OTHER and '(' not in name)


def known(name):
    """Whether a name is that of a file, of something in the package, or of a part of the head."""
    if '/' in name:
        return (ROOT / name).exists()
    first, *rest = name.split('.')
    places = [vars(module).get(first) for module in MODULES]
    places += [MODELS.get(first), HOOKS.get(first)]
    place = next((place for place in places if place is not None), None)
    for attribute in rest:
        place = getattr(place, attribute, None)
    return place is not None


def test_every_name_is_one_of_the_code():
    head = tiny_head.build()
    losses, _ = tiny_head.step(head)
    parts = {name for module in head.modules() for name, _ in module.named_children()}
    parts |= {name for module in head.modules() for name in vars(module)}
    parts |= {name for name, _ in head.bank.named_buffers()} | set(losses)
    parts |= {'batch', 'loss_consistency'}  # arguments, below
    assert len(names()) > 40
    wrong = [name for name in names() if name not in parts and not known(name)]
    assert not wrong
    assert 'loss_consistency' in mdrl_head.MDRLHead.__init__.__kwdefaults__
    assert 'batch' in memory_head.MemoryLosses.forward.__code__.co_varnames


@pytest.mark.parametrize('name', ['MDRLHead.no_such_method', 'NoSuchClass', 'tools/none.py'])
def test_a_wrong_name_is_found(name):
    assert not known(name)


def test_what_it_says_of_the_parts():
    head = tiny_head.build()
    assert isinstance(head.consistency, nn.Module)
    assert [hook.__name__ for hook in head.consistency._forward_hooks.values()] == ['_move_bank']
    assert len(PAGE.read_text().split()) < 1000  # five minutes
