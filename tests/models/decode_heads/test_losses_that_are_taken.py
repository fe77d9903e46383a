"""Losses, samplers and single logits: what FCNHead takes our heads take, or refuse when built."""

import pytest
import torch
from mmseg.registry import MODELS

from tests.models.decode_heads import tiny_head
from tests.models.segmentors import tiny_segmentor

CE = dict(type='CrossEntropyLoss')
BINARY = dict(type='CrossEntropyLoss', use_sigmoid=True)
DICE = dict(type='DiceLoss')
LOVASZ = dict(type='LovaszLoss', reduction='none')
OHEM = dict(type='OHEMPixelSampler', thresh=0.7, min_kept=10)


def build(kind, segmentor='EncoderDecoder', **options):
    return tiny_segmentor.build(tiny_segmentor.head(kind, **options), segmentor)


def step(model, num_classes):
    model.train()
    labels = torch.randint(num_classes, (2, *tiny_segmentor.IMAGE),
                           generator=torch.Generator().manual_seed(0))  # fmt: skip
    labels[:, :6] = 255
    losses = model.loss(tiny_segmentor.images(), tiny_head.samples(labels))
    total = tiny_head.objective(losses)
    total.backward()
    assert total.isfinite()
    return losses


@pytest.mark.parametrize('classes', [dict(num_classes=1), dict(num_classes=2, out_channels=1)])
@pytest.mark.parametrize(('kind', 'segmentor'), [
    ('FCNHead', 'EncoderDecoder'), ('DGCWHead', 'EncoderDecoder'), ('CAAHead', 'EncoderDecoder'),
    ('FCNHead', 'CAREncoderDecoder'), ('DGCWHead', 'CAREncoderDecoder'),
])  # fmt: skip
def test_one_logit_for_foreground_and_background(kind, segmentor, classes):
    """Labels 0 and 1; CAR has a centre of both."""
    options = dict(downsample=1) if kind == 'DGCWHead' else {}
    model = build(kind, segmentor, loss_decode=BINARY, **classes, **options)
    losses = step(model, 2)
    if segmentor != 'EncoderDecoder':
        assert losses['car.loss_intra_c2p'] > 0
        assert model.car.num_classes == 2
    wrong = tiny_head.samples(torch.full((2, *tiny_segmentor.IMAGE), 2))
    if kind != 'FCNHead' or segmentor != 'EncoderDecoder':  # MMSegmentation's own says less
        with pytest.raises(ValueError, match=r'labels \[2\].*outside 0\.\.1'):
            model.loss(tiny_segmentor.images(), wrong)
    model.eval()
    predicted = model.predict(tiny_segmentor.images(), tiny_segmentor.samples())
    assert set(predicted[0].pred_sem_seg.data.unique().tolist()) <= {0, 1}


@pytest.mark.parametrize('kind', ['MDRLHead', 'MCIBIHead', 'MCIBIPlusPlusHead', 'ProtoSegHead'])
def test_a_memory_needs_a_logit_for_each_class(kind):
    for classes in (dict(num_classes=1), dict(num_classes=2, out_channels=1, threshold=0.4)):
        with pytest.raises(ValueError, match='write num_classes=2, out_channels=2, loss_decode'):
            build(kind, loss_decode=BINARY, **classes)
    written = dict(type='CrossEntropyLoss', use_sigmoid=False)
    step(build(kind, num_classes=2, out_channels=2, loss_decode=written), 2)


ONES = ['MDRLHead', 'MCIBIHead', 'DGCWHead', 'ProtoSegHead', 'MCIBIPlusPlusHead']


@pytest.mark.parametrize('kind', ONES)
def test_a_loss_that_takes_no_weight_under_a_sampler(kind):
    with pytest.raises(ValueError, match='loss_decode: DiceLoss takes no weight for each pixel'):
        build(kind, sampler=OHEM, loss_decode=[CE, DICE])
    with pytest.raises(ValueError, match='OHEMPixelSampler can not choose pixels by loss_decode'):
        build(kind, sampler=dict(type='OHEMPixelSampler', min_kept=10), loss_decode=[CE, DICE])
    step(build(kind, sampler=OHEM, loss_decode=[CE, dict(BINARY, loss_name='loss_bce')]), 5)
    step(build(kind, loss_decode=[CE, DICE]), 5)


@pytest.mark.parametrize('kind', ONES)
def test_no_ignore_index(kind):
    """Cross entropy needs a number, in any head; a loss that doesn't is taken."""
    with pytest.raises(ValueError, match='loss_decode: CrossEntropyLoss takes no ignore_index=Non'):
        build(kind, ignore_index=None)
    if kind == 'DGCWHead':
        build(kind, ignore_index=None, loss_decode=dict(type='LovaszLoss', reduction='none'))


@pytest.mark.parametrize('kind', ['MDRLHead', 'MCIBIHead', 'MCIBIPlusPlusHead'])
def test_coarse_losses(kind):
    with pytest.raises(ValueError, match='loss_coarse: DiceLoss takes no weight for each pixel'):
        build(kind, sampler=OHEM, loss_coarse=[CE, DICE])
    with pytest.raises(ValueError, match='loss_coarse: SiLogLoss takes'):
        build(kind, loss_coarse=dict(type='SiLogLoss'))
    losses = step(build(kind, loss_coarse=[CE, DICE, LOVASZ]), 5)
    assert {f'decode.coarse_loss_{name}' for name in ('ce', 'dice', 'lovasz')} <= set(losses)


@pytest.mark.parametrize(
    'loss', [DICE, LOVASZ, dict(type='LovaszLoss', per_image=True), dict(type='TverskyLoss'),
             dict(type='FocalLoss'), dict(type='OhemCrossEntropy'), dict(type='SiLogLoss')],
)  # fmt: skip
def test_losses_of_the_memory_that_do_not_leave_classes_out(loss):
    with pytest.raises(ValueError, match=f'MCIBIHead: loss_memory: {loss["type"]} takes'):
        tiny_head.build_mcibi(loss_memory=[CE, loss])


def test_losses_of_the_memory_leave_out_what_is_not_there():
    """The value is the one over the classes in memory, for softmax and sigmoid."""
    for loss in (CE, BINARY, dict(CE, avg_non_ignore=True), dict(CE, class_weight=[1.0] * 5)):
        head = tiny_head.build_mcibi(loss_memory=loss)
        head.bank.filled[:2] = True
        head.bank.features.normal_(generator=torch.Generator().manual_seed(0))
        pixels = torch.zeros(1, 8, 2, 2, dtype=torch.float64)
        labels = torch.full((1, 2, 2), 255)
        found = head.memory_losses(pixels, labels)['memory_loss_ce']
        logits, classes = head.classify_memory()[:2], torch.arange(2)[:, None, None]
        expected = MODELS.build(loss)(logits, classes).to(found)
        torch.testing.assert_close(found, expected)


def test_building_draws_no_random_number_and_counts_no_call():
    torch.manual_seed(3)
    tiny_head.build(seed=7, sampler=OHEM)
    after = torch.rand(1)
    tiny_head.build(seed=7)
    assert torch.equal(after, torch.rand(1))
