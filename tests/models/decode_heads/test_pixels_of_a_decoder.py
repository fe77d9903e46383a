"""Memory heads on a decoder's own map (`pixels='context'`): size, form, cost, what is refused."""

import pytest
import torch
import torch.nn.functional as F
from mmseg.registry import MODELS

from mmseg_cmdl.models import RelationAttention
from tests import stack
from tests.models.decode_heads import tiny_head
from tests.models.segmentors import every_head, tiny_segmentor
from tests.reference import mdrl

OURS = [
    'MDRLHead', 'MCIBIHead', 'MCIBIPlusPlusHead', 'ProtoSegHead', 'DGCWHead', 'CPHead', 'CAAHead',
]  # fmt: skip
# what a memory head can stand in for, with the old head as its context, by one changed line
DECODERS = [name for name in every_head.HEADS if name not in OURS]
# Their losses and inputs in training are their own, so the one changed line is refused there.
REFUSED = {
    'PIDHead': 'loss|takes|forward|map',
    'DDRHead': 'loss|takes|forward|map',
}
SEVERAL = [
    'UPerHead', 'SegformerHead', 'FPNHead', 'SETRMLAHead', 'LightHamHead', 'DPTHead', 'LRASPPHead',
]  # fmt: skip
FINER = [*SEVERAL, 'DepthwiseSeparableASPPHead', 'SETRUPHead']


def changed(name, kind):
    """Config of the head under one changed line: the type, and the old type as the context."""
    config = every_head.config(name)
    config = dict(config[-1] if isinstance(config, list) else config)  # the last of a cascade
    return {**config, **every_head.HEADS[kind], 'type': kind, 'context': dict(type=config['type'])}


def build(decode_head, name):
    cascade = isinstance(decode_head, list)
    options = dict(num_stages=len(decode_head)) if cascade else {}
    kind = 'CascadeEncoderDecoder' if cascade else 'EncoderDecoder'
    return tiny_segmentor.build(decode_head, kind, backbone=every_head.backbone(name), **options)


@pytest.mark.parametrize('fusion', ['concat', 'weighted_add'])
@pytest.mark.parametrize('kind', ['MDRLHead', 'MCIBIHead'])
@pytest.mark.parametrize(
    'name', stack.for_training([name for name in DECODERS if name not in REFUSED])
)
def test_any_head_can_be_the_context(name, kind, fusion):
    """One changed line, training steps, and the size of the map of logits before and after.

    Every parameter has a gradient, so DDP needs no find_unused_parameters.
    """
    plain = build(every_head.config(name), name).eval()
    model = build(dict(changed(name, kind), fusion=fusion), name)
    assert model.decode_head.pixels == ('context' if name in FINER or name in (
        'ANNHead', 'EncHead') else 'backbone')  # fmt: skip
    for step in range(2):  # MCIBI's memory is empty in the first
        losses = tiny_segmentor.train_step(model, step)
        assert all(torch.as_tensor(value).isfinite().all() for value in losses.values())
        parts = model.decode_head.named_parameters()
        unused = {key for key, p in parts if p.requires_grad and p.grad is None}
        # what EncHead trains by a loss of its own, unless it is told `use_se_loss=False`
        expected = {f'context.head.se_layer.{key}' for key in ('weight', 'bias')}
        assert unused == (expected if name == 'EncHead' else set())
    context = model.decode_head.context.parameters()
    assert any(p.grad is not None and p.grad.any() for p in context)
    assert int(model.decode_head.bank.num_updates) == 2
    model.eval()
    with torch.no_grad():
        maps = model.extract_feat(tiny_segmentor.images())
        if name == 'OCRHead':
            output = plain.decode_head[1](maps, plain.decode_head[0](maps))
        else:
            output = plain.decode_head(maps)
        output = output[0] if isinstance(output, tuple) else output
        logits = model.decode_head(maps)
        assert logits.shape == output.shape
        assert logits.isfinite().all()


@pytest.mark.parametrize('name', REFUSED)
def test_heads_with_losses_of_their_own_are_refused_in_a_sentence(name):
    config = dict(changed(name, 'MDRLHead'), **every_head.losses(name))
    with pytest.raises((ValueError, TypeError), match=REFUSED[name]):
        tiny_segmentor.train_step(build(config, name))


class PSAMask(torch.nn.Module):
    """What mmcv's compiled operation of this name does, plainly: PSANet's attention over places."""

    def __init__(self, psa_type, mask_size):
        super().__init__()
        self.collect, self.mask_size = psa_type == 'collect', mask_size

    def forward(self, masks):
        (B, _, h, w), (rows, cols) = masks.shape, self.mask_size
        out = masks.new_zeros(B, h, w, h, w)  # other place, place
        for y in range(h):
            for x in range(w):
                for row in range(rows):
                    for col in range(cols):
                        there = (y + row - rows // 2, x + col - cols // 2)
                        if 0 <= there[0] < h and 0 <= there[1] < w:
                            value = masks[:, row * cols + col, y, x]
                            if self.collect:
                                out[:, there[0], there[1], y, x] = value
                            else:
                                out[:, y, x, there[0], there[1]] = value
        return out.flatten(1, 2)


@pytest.mark.parametrize('kind', ['MDRLHead', 'MCIBIHead', 'DGCWHead', 'CAR'])
def test_psanet_with_its_compiled_operation_stood_in_for(kind, monkeypatch):
    monkeypatch.setattr('mmseg.models.decode_heads.psa_head.PSAMask', PSAMask)
    plain = tiny_segmentor.head('PSAHead', channels=4, mask_size=(3, 3))
    before = tiny_segmentor.build(plain, 'EncoderDecoder').eval()
    if kind == 'CAR':
        model = tiny_segmentor.build(plain, 'CAREncoderDecoder')
    else:
        own = {} if kind == 'DGCWHead' else every_head.HEADS[kind]
        ours = {**plain, **own, 'type': kind, 'context': dict(type='PSAHead')}
        model = tiny_segmentor.build(ours, 'EncoderDecoder')
    losses = tiny_segmentor.train_step(model)
    assert all(torch.as_tensor(value).isfinite().all() for value in losses.values())
    with torch.no_grad():
        maps = before.extract_feat(tiny_segmentor.images())
        assert model.eval().decode_head(maps).shape == before.decode_head(maps).shape


def uper(**options):
    return tiny_head.make(
        'MDRLHead', **every_head.HEADS['MDRLHead'], loss_consistency=tiny_head.paper(),
        in_channels=list(tiny_head.CHANNELS), in_index=[0, 1, 2, 3],
        context=dict(type='UPerHead', pool_scales=(1, 2)), **options,
    )  # fmt: skip


def test_pixels_are_what_the_decoder_would_classify():
    """R is a 1x1 conv of the decoder's map; no second branch; all of it at the decoder's size."""
    head = uper().eval()
    inputs = tiny_head.features()
    with torch.no_grad():
        decoded = head.context(inputs)
        assert decoded.shape[2:] == tiny_head.SIZES[0]
        conv = head.bottleneck
        assert conv.conv.kernel_size == head.fuse_pixels.conv.kernel_size == (1, 1)
        expected = conv.activate(conv.norm(F.conv2d(decoded, conv.conv.weight)))
        pixels, coarse, augmented = head.forward_features(inputs)
        torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-12)
        assert coarse.shape[2:] == augmented.shape[2:] == tiny_head.SIZES[0]
        assert head.memory_vectors(inputs).shape[1:3] == tiny_head.SIZES[0]
    names = {name for name, _ in head.named_children()}
    assert not names & {'context_relation', 'fuse_context'}
    assert any(key.startswith('context.') for key in head.embedding_state())


def test_keys_are_averaged_over_squares():
    """The relation with key_stride is the plain one on the averaged memory, rests included."""
    torch.manual_seed(0)
    strided = RelationAttention(6, 6, 4, key_stride=2).double().eval()
    plain = RelationAttention(6, 6, 4).double().eval()
    plain.load_state_dict(strided.state_dict())
    query, memory = torch.randn(2, 2, 6, 5, 7, dtype=torch.float64)
    small = torch.zeros(2, 6, 3, 4, dtype=torch.float64)
    for y in range(3):
        for x in range(4):
            small[:, :, y, x] = memory[:, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((2, 3))
    torch.testing.assert_close(strided(query, memory), plain(query, small), rtol=0, atol=1e-12)


@pytest.mark.parametrize(('dtype', 'rtol'), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_means_of_large_squares_stay_in_range(dtype, rtol):
    """In half precision, too, where the sum over a square has no number."""
    attention = RelationAttention(1, 1, 1, key_stride=32)
    memory = (100 + torch.arange(64 * 70.0).reshape(1, 1, 64, 70) / 100).to(dtype)
    got = attention._averaged(memory)
    assert got.dtype == dtype
    assert got.shape == (1, 1, 2, 3)
    for y in range(2):
        for x in range(3):
            square = memory[0, 0, 32 * y : 32 * y + 32, 32 * x : 32 * x + 32].double()
            torch.testing.assert_close(got[0, 0, y, x].double(), square.mean(), rtol=rtol, atol=0)


@pytest.mark.parametrize('norm', ['BN', 'GN'])
def test_a_single_key_is_named(norm):
    """Norms have nothing to train on, though the map has many pixels."""
    norm_cfg = dict(type='GN', num_groups=2) if norm == 'GN' else dict(type='BN')
    attention = RelationAttention(4, 4, 2, key_stride=8, norm_cfg=norm_cfg)
    with pytest.raises(ValueError, match='key_stride=8 leaves a single key of a map of 8x7 and a'):
        attention(*torch.randn(2, 1, 4, 8, 7))
    assert attention(*torch.randn(2, 1, 4, 8, 9)).shape == (1, 4, 8, 9)
    # where a smaller stride is no way out PyTorch's own words stay
    with pytest.raises(ValueError, match=r'^Expected more than 1 value per channel'):
        attention(*torch.randn(2, 1, 4, 1, 1))
    if norm == 'BN':
        assert attention.eval()(*torch.randn(2, 1, 4, 8, 7)).isfinite().all()


def test_default_strides_are_those_of_a_large_map_on_a_decoder_and_one_otherwise():
    head = uper()
    assert (head.relation.key_stride, head.loss_stride) == (8, 4)
    head = uper(key_stride=1, loss_stride=2)
    assert (head.relation.key_stride, head.loss_stride) == (1, 2)
    head = tiny_head.build(context=dict(type='PSPHead'))
    assert (head.relation.key_stride, head.loss_stride) == (1, 1)


@pytest.mark.parametrize('kind', ['MCIBIHead', 'MCIBIPlusPlusHead'])
@pytest.mark.parametrize('stride', [2, 3])
def test_memory_and_coarse_loss_take_every_so_many_th_pixel(kind, stride):
    """Against loops over pixels and labels; the final loss sees all labels."""
    head = tiny_head.make(
        kind, in_channels=list(tiny_head.CHANNELS), in_index=[0, 1, 2, 3],
        context=dict(type='UPerHead', pool_scales=(1, 2)), loss_stride=stride,
    )  # fmt: skip
    labels = tiny_head.label_maps(size=(21, 26), ignored=0.3)
    inputs = tiny_head.features()
    shots = []
    head.coarse_classifier.register_forward_hook(
        lambda _, args, logits: shots.append((args[0].detach(), logits.detach()))
    )
    before = {key: value.clone() for key, value in head.bank.state_dict().items()}
    losses = head.loss(inputs, tiny_head.samples(labels), None)
    ((pixels, logits),) = shots
    small = mdrl.nearest_labels(labels, pixels.shape[2:])
    rows, kept, classes = {}, [], []
    for b in range(len(labels)):
        for y in range(0, pixels.shape[2], stride):
            for x in range(0, pixels.shape[3], stride):
                kept.append(logits[b, :, y, x])
                classes.append(int(small[b, y, x]))
                rows.setdefault(classes[-1], []).append(pixels[b, :, y, x])
    expected = F.cross_entropy(
        torch.stack(kept), torch.tensor(classes), ignore_index=255, reduction='sum'
    )
    torch.testing.assert_close(
        losses['coarse_loss_ce'], 0.4 * expected / len(classes), rtol=1e-8, atol=0
    )
    assert set(rows) - {255}
    for k in range(head.num_classes):
        if k not in rows:
            for key in ('features', 'statistics'):
                if key in before:
                    assert torch.equal(head.bank.state_dict()[key][k], before[key][k])
        else:
            mean = torch.stack(rows[k]).mean(dim=0)
            if kind == 'MCIBIHead':  # the first vector of a class
                torch.testing.assert_close(head.bank.features[k], mean, rtol=0, atol=1e-12)
            else:
                found = torch.stack([mean.mean(), mean.std()])
                expected = torch.lerp(before['statistics'][k], found, 0.1)
                torch.testing.assert_close(head.bank.statistics[k], expected, rtol=0, atol=1e-12)


def test_distributions_are_moved_by_every_so_many_th_pixel(monkeypatch):
    """MDRL's bank sees the embeddings of those pixels, with the labels nearest to them."""
    head = uper(loss_stride=2)
    seen = []
    update = head.bank.update_

    def recording(embeddings, labels, **kwargs):
        seen.append((embeddings, labels))
        return update(embeddings, labels, **kwargs)

    monkeypatch.setattr(head.bank, 'update_', recording)
    pixels = []
    head.coarse_classifier.register_forward_hook(lambda _, args, out: pixels.append(args[0]))
    tiny_head.freeze_norms(head)
    labels = tiny_head.label_maps()
    head.loss(tiny_head.features(), tiny_head.samples(labels), None)
    ((embeddings, classes),) = seen
    small = mdrl.nearest_labels(labels, pixels[0].shape[2:])
    assert torch.equal(classes, small[:, ::2, ::2].flatten())
    with torch.no_grad():
        embedded = head.embed(pixels[0])[:, ::2, ::2].flatten(0, 2)
    torch.testing.assert_close(embeddings.detach(), embedded, rtol=0, atol=1e-12)


def test_the_papers_form_can_be_asked_for():
    head = uper(pixels='backbone')
    assert head.has_context_branch
    assert head(tiny_head.features()).shape[2:] == tiny_head.SIZES[3]


def test_a_single_map_head_can_be_the_decoder_too():
    head = tiny_head.build(pixels='context', context=dict(type='PSPHead', pool_scales=(1, 2)))
    losses, grads = tiny_head.step(head)
    assert all(grad is not None for grad in grads.values())
    assert not head.has_context_branch
    assert all(value.isfinite() for value in losses.values())


def test_depthwise_separable_aspp_is_told_from_its_parent():
    """DeepLabV3+ takes the first map unasked, and classifies at its size; DeepLabV3 doesn't."""
    pixels = {}
    for name in ('ASPPHead', 'DepthwiseSeparableASPPHead'):
        head = MODELS.build(changed(name, 'MCIBIHead'))
        pixels[name] = head.pixels
    assert pixels == {'ASPPHead': 'backbone', 'DepthwiseSeparableASPPHead': 'context'}
