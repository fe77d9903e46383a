"""Any label map, size, K, N and batch: only documented errors, nothing non-finite.

2,000 problems by default; a longer run, with other problems each time:

    MMSEG_CMDL_FUZZ=100000 pytest tests/guarantees/test_fuzz.py
"""

import functools
import os
import warnings
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.model import BaseModule
from mmseg.registry import MODELS

from tests.guarantees import cases
from tests.models.decode_heads import tiny_head

EXAMPLES = int(os.environ.get('MMSEG_CMDL_FUZZ', '2000'))
BAD_LABELS = max(50, EXAMPLES // 20)
CHANNELS = 6


def fuzzed(examples):
    return settings(
        max_examples=examples, deadline=None, derandomize='MMSEG_CMDL_FUZZ' not in os.environ,
        database=None, suppress_health_check=list(HealthCheck),
    )  # fmt: skip


@MODELS.register_module(force=True)
class GuaranteesIdentity(BaseModule):
    """The image is the feature map."""

    def forward(self, x):
        return [x]


@functools.cache
def _model(name, num_classes, num, ignore_index):
    config = cases.model_config(name, num_classes=num_classes, auxiliary=False)
    config['backbone'] = dict(type='GuaranteesIdentity')
    config['data_preprocessor'] = None
    heads = config['decode_head']
    for part in heads if isinstance(heads, list) else [heads]:
        part.update(ignore_index=ignore_index, norm_cfg=None)
        if isinstance(part['in_channels'], list):  # a decoder of several maps: the one, four times
            part.update(in_channels=[CHANNELS] * 4, in_index=[0] * 4)
        else:
            part.update(in_channels=CHANNELS, in_index=0)
    head = cases.last(heads)
    if 'bank' in head:
        head['bank'] = dict(head['bank'], num_distributions=num)
    config.pop('data_preprocessor')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # one class and softmax: mmseg advises the sigmoid
        torch.manual_seed(0)
        model = cases.from_config(config).train()
    return model, {key: value.clone() for key, value in model.state_dict().items()}


def _labels(kind, num_classes, ignore_index, shape, generator):
    labels = torch.randint(num_classes, shape, generator=generator)
    if kind == 'one class':
        labels[:] = labels.flatten()[0].item()
    elif kind == 'blocks':
        labels = labels[:, :1, :1].expand(shape).clone()
    elif kind == 'speckled':
        labels[torch.rand(shape, generator=generator) < 0.4] = ignore_index
    elif kind == 'one pixel':
        kept = labels[-1, -1, -1].item()
        labels[:] = ignore_index
        labels[-1, -1, -1] = kept
    elif kind == 'last image ignored':
        labels[-1] = ignore_index
    elif kind == 'all ignored':
        labels[:] = ignore_index
    return labels


SIDES = st.tuples(st.integers(1, 8), st.integers(1, 8))
PROBLEMS = st.fixed_dictionaries(
    dict(
        name=st.sampled_from(list(cases.CASES)),
        num_classes=st.sampled_from([1, 2, 3, 6]),
        num=st.sampled_from([1, 3]),
        ignore=st.sampled_from(['255', '255', 'K', '0']),
        batch=st.integers(1, 3),
        size=SIDES,
        label_size=st.one_of(st.none(), st.tuples(st.integers(1, 17), st.integers(1, 17))),
        kind=st.sampled_from(
            ['random', 'one class', 'blocks', 'speckled', 'one pixel', 'last image ignored',
             'all ignored']
        ),
        scale=st.sampled_from([1.0, 1.0, 1.0, 0.0, 1e-3, 1e4]),
        seed=st.integers(0, 2**16),
    )
)  # fmt: skip


def _ready(problem):
    """(model, its start state, features, labels, ignore_index) of a problem."""
    num_classes = problem['num_classes']
    ignore_index = {'255': 255, 'K': num_classes, '0': 0}[problem['ignore']]
    model, state = _model(problem['name'], num_classes, problem['num'], ignore_index)
    model.load_state_dict(state)
    model.zero_grad()
    generator = torch.Generator().manual_seed(problem['seed'])
    shape = (problem['batch'], *(problem['label_size'] or problem['size']))
    labels = _labels(problem['kind'], num_classes, ignore_index, shape, generator)
    images = torch.randn(problem['batch'], CHANNELS, *problem['size'], generator=generator)
    return model, state, (images * problem['scale']).requires_grad_(), labels, ignore_index


class _Watched:
    """Keeps gradients: of what is classified, which CAR's losses see, and of MDRL's embeddings."""

    def __init__(self, model):
        self.maps = {}
        self.model = model
        head = cases.last(model.decode_head)
        self.handles = [head.conv_seg.register_forward_pre_hook(self._keep_classified)]
        if hasattr(head, 'projection'):
            # a view of its own, so that only the memory losses reach it
            similarity = head.bank.similarity
            head.bank.similarity = lambda embeddings: similarity(self._keep_embeddings(embeddings))

    def _keep_classified(self, module, inputs):
        if 'classified' not in self.maps:  # MCIBI classifies its memory as well, later
            inputs[0].retain_grad()
            self.maps['classified'] = inputs[0]

    def _keep_embeddings(self, embeddings):
        embeddings = embeddings.view_as(embeddings)
        embeddings.retain_grad()
        self.maps['embeddings'] = embeddings
        return embeddings

    def gradients(self):
        """Gradient maps [B, ., h, w] by name."""
        maps = {key: x.grad for key, x in self.maps.items()}
        if maps.get('embeddings') is not None:
            maps['embeddings'] = maps['embeddings'].movedim(-1, 1)
        for handle in self.handles:
            handle.remove()
        vars(getattr(cases.last(self.model.decode_head), 'bank', self)).pop('similarity', None)
        return maps


def _check_bank(model, state, counted):
    """Unit and finite; a class without a pixel keeps its vectors to the bit."""
    head = cases.last(model.decode_head)
    if not hasattr(head, 'bank'):
        return
    name = f'decode_head.bank.{head.bank.memory_name}'
    rows = head.state_dict()[f'bank.{head.bank.memory_name}']
    assert rows.isfinite().all()
    if name.endswith('distributions'):
        lengths = rows.norm(dim=-1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-5)
    for k in range(head.num_classes):
        if k not in counted:
            assert torch.equal(rows[k], state[name][k]), k
    assert head.bank.num_updates == 1


@fuzzed(EXAMPLES)
@given(problem=PROBLEMS)
def _training_step(problem):
    model, state, images, labels, ignore_index = _ready(problem)
    counted = set(labels.unique().tolist()) - {ignore_index}
    # the released L_inter-c2p counts ignored pixels, as its docstring says
    ignores = problem['name'] != 'car_released'
    watched = _Watched(model)
    losses = model.loss(images, tiny_head.samples(labels))
    total = cases.objective(losses)
    total.backward()
    for key, gradient in watched.gradients().items():
        # pixel for pixel where a map is as large as the labels, as it is not resized then
        if gradient.shape[2:] == labels.shape[1:] and ignores:
            at_ignored = gradient.movedim(1, -1)[labels == ignore_index]
            assert not at_ignored.any(), key
            _training_step.pixels[key] += len(at_ignored)
    for key, value in losses.items():
        values = value if isinstance(value, list) else [value]
        assert all(v.isfinite().all() for v in values), key
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert images.grad.isfinite().all()
    ignored = (labels == ignore_index).flatten(1).all(dim=1)
    assert not (images.grad[ignored].any() and ignores)
    _check_bank(model, state, counted)
    _training_step.seen.add((problem['name'], problem['kind']))
    _training_step.moved += bool(images.grad.any())


@pytest.mark.slow
def test_training_step():
    """Losses, gradients and bank; nothing comes back to ignored pixels, nor to ignored images."""
    _training_step.seen, _training_step.moved = set(), 0
    _training_step.pixels = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        _training_step()
    # the problems are not all empty, and cases met most kinds of label maps
    assert _training_step.moved > EXAMPLES // 4
    assert _training_step.pixels['classified'] > EXAMPLES
    assert _training_step.pixels['embeddings'] > EXAMPLES // 4
    if EXAMPLES >= 2000:
        assert {name for name, _ in _training_step.seen} == set(cases.CASES)
        assert len(_training_step.seen) > 0.75 * len(cases.CASES) * 7


@fuzzed(BAD_LABELS)
@given(problem=PROBLEMS, wrong=st.sampled_from([-1, 'K', 254]), place=st.integers(0, 10**6))
def test_a_wrong_label_is_the_documented_error(problem, wrong, place):
    """One pixel that is no class: a ValueError naming value and image, and nothing has moved."""
    model, state, images, labels, ignore_index = _ready(problem)
    value = problem['num_classes'] if wrong == 'K' else wrong
    if value == ignore_index:
        value += 1
    labels.view(-1)[place % labels.numel()] = value
    image = place % labels.numel() // labels[0].numel()
    with pytest.raises(ValueError, match=rf'labels \[{value}\] of image_{image}.png'):
        model.loss(images, tiny_head.samples(labels))
    for key, before in state.items():
        assert torch.equal(model.state_dict()[key], before), key
