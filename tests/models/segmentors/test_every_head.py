"""CAR on every decode head, of MMSegmentation and ours, that has a conv_seg."""

import pytest
import torch
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from torch import nn

from tests import stack
from tests.models.segmentors import every_head, tiny_segmentor


def test_every_registered_head_is_accounted_for():
    known = [
        *every_head.HEADS,
        *every_head.EXCEPTIONS,
        *every_head.WITHOUT,
        *every_head.NO_DECODE_HEAD,
    ]
    assert len(known) == len(set(known))
    assert every_head.registered() == set(known)


def _build(name, kind='CAR', **options):
    config = every_head.config(name)
    cascade = isinstance(config, list)
    last = config[-1] if cascade else config
    last.update(every_head.losses(name))
    options.update(dict(num_stages=len(config)) if cascade else {})
    kind = f'{"CAR" if kind == "CAR" else ""}{"Cascade" if cascade else ""}EncoderDecoder'
    return tiny_segmentor.build(config, kind, backbone=every_head.backbone(name), **options)


def _samples(name):
    samples = tiny_segmentor.samples()
    if name == 'PIDHead':  # and where classes meet
        for sample in samples:
            edge = (sample.gt_sem_seg.data != sample.gt_sem_seg.data.roll(1, -1)).float()
            sample.gt_edge_map = PixelData(data=edge)
    return samples


@pytest.mark.parametrize('name', stack.for_training(every_head.HEADS))
def test_trains_a_step_folds_and_predicts_the_same(name):
    # LightHamHead makes float32 bases
    dtype, atol = (torch.float32, 1e-5) if name == 'LightHamHead' else (torch.float64, 1e-10)
    model = _build(name).to(dtype)
    before = {key: value.clone() for key, value in model.car.named_parameters()}
    losses = tiny_segmentor.train_step(model, labelled=_samples(name))
    for loss in ('intra_c2p', 'inter_c2c', 'inter_c2p'):
        assert losses[f'car.loss_{loss}'].isfinite()
    assert losses['car.loss_intra_c2p'] > 0
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert set(before) == {'linear.weight'}
    assert not torch.equal(before['linear.weight'], model.car.linear.weight)

    plain = _build(name, 'plain', seed=1).to(dtype)
    before = tiny_segmentor.logits(plain)
    tiny_segmentor.assert_folds_into(plain, model, atol)
    expected = tiny_segmentor.logits(model)
    assert not torch.allclose(before, expected, atol=1e-3)
    float32 = tiny_segmentor.logits(plain.float()), tiny_segmentor.logits(model.float())
    torch.testing.assert_close(*float32, rtol=0, atol=1e-5 * max(1, expected.abs().max().item()))


@pytest.mark.parametrize('name', every_head.HEADS)
def test_a_plain_checkpoint_predicts_the_same_under_car(name):
    plain = _build(name, 'plain', seed=1)
    model = _build(name, seed=2)
    assert not model.load_state_dict(plain.state_dict()).missing_keys
    torch.testing.assert_close(
        tiny_segmentor.logits(model), tiny_segmentor.logits(plain), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize('name', every_head.WITHOUT)
def test_a_head_without_conv_seg_is_refused(name):
    with pytest.raises(ValueError, match=f'{name} has no conv_seg'):
        _build(name)


def test_a_head_that_never_calls_conv_seg_is_told_so():
    @MODELS.register_module()
    class SilentHead(MODELS.get('FCNHead')):
        def cls_seg(self, feat):
            return nn.functional.conv2d(feat, self.conv_seg.weight)

    try:
        model = tiny_segmentor.build(tiny_segmentor.head('SilentHead'))
        with pytest.raises(RuntimeError, match='SilentHead did not call its conv_seg'):
            tiny_segmentor.train_step(model)
    finally:
        MODELS.module_dict.pop('SilentHead')
