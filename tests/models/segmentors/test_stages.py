"""Our heads as first, middle and last stage of a cascade, as auxiliary heads and in K-Net."""

import pytest
import torch

from mmseg_cmdl.deployment import InferenceModel
from mmseg_cmdl.engine.bank_health_hook import find_bank_head
from tests.models.segmentors import tiny_segmentor
from tests.models.segmentors.tiny_segmentor import head

OURS = ['MDRLHead', 'MCIBIHead', 'MCIBIPlusPlusHead', 'ProtoSegHead', 'DGCWHead', 'CAAHead']
MEMORIES = OURS[:4]


def options_of(kind):
    # OCRHead gathers by the logits of the stage before, at the size of its features
    return dict(downsample=1) if kind == 'DGCWHead' else {}


def check(model):
    """A step reaches every parameter; prediction and export agree; the memory moves."""
    losses = tiny_segmentor.train_step(model)
    total, _ = model.parse_losses(losses)
    assert total.isfinite()
    untouched = [n for n, p in model.decode_head.named_parameters() if p.grad is None]
    assert not untouched
    images = tiny_segmentor.images()
    model.eval()
    with torch.no_grad():
        plain = tiny_segmentor.logits(model, seed=0)
        torch.testing.assert_close(InferenceModel(model)(images), plain, rtol=1e-4, atol=1e-5)
    assert model.predict(images, tiny_segmentor.samples())[0].pred_sem_seg.data.shape[1:] == (
        tiny_segmentor.IMAGE
    )


@pytest.mark.parametrize('kind', OURS)
def test_stages_of_a_cascade(kind):
    ours = head(kind, **options_of(kind))
    ocr = head('OCRHead', ocr_channels=4)
    for stages in ([ours, ocr], [head(), ours], [head(), ours, ocr]):
        model = tiny_segmentor.build(stages, 'CascadeEncoderDecoder', num_stages=len(stages))
        check(model)
        if kind in MEMORIES:
            ours_at = stages.index(ours)
            found = find_bank_head(model)
            assert found is model.decode_head[ours_at]
            assert found.bank.num_updates > 0


def test_a_stage_before_is_trained_like_an_auxiliary_head():
    """What it predicts isn't looked at."""
    model = tiny_segmentor.build([head(), head('MDRLHead')], 'CascadeEncoderDecoder', num_stages=2)
    model.eval()
    last = model.decode_head[-1]
    maps = model.extract_feat(tiny_segmentor.images())
    with torch.no_grad():
        for previous in (model.decode_head[0](maps), None):
            assert torch.equal(last.forward(maps, previous), last.forward(maps))


@pytest.mark.parametrize('kind', ['MDRLHead', 'DGCWHead'])
def test_before_point_head(kind):
    point = head('PointHead', in_channels=[10], in_index=[3], num_fcs=1,
                 coarse_pred_each_layer=True, dropout_ratio=-1)  # fmt: skip
    point.pop('norm_cfg')
    model = tiny_segmentor.build([head(kind), point], 'CascadeEncoderDecoder', num_stages=2)
    model.train_cfg.update(num_points=16, oversample_ratio=3, importance_sample_ratio=0.75)
    model.test_cfg.update(subdivision_steps=2, subdivision_num_points=16, scale_factor=2)
    check(model)


@pytest.mark.parametrize('kind', MEMORIES)
def test_the_bank_of_the_head_that_predicts(kind):
    model = tiny_segmentor.build(head(kind), 'EncoderDecoder',
                                 auxiliary_head=[head(kind), head()])  # fmt: skip
    check(model)
    assert find_bank_head(model) is model.decode_head
    for own in (model.decode_head, model.auxiliary_head[0]):
        assert own.bank.num_updates == 1
    model = tiny_segmentor.build(head(), 'EncoderDecoder', auxiliary_head=head(kind))
    assert find_bank_head(model) is model.auxiliary_head


def knet(kind):
    act, norm = dict(type='ReLU', inplace=True), dict(type='LN')
    update = dict(
        type='KernelUpdateHead', num_classes=5, num_ffn_fcs=2, num_heads=2, num_mask_fcs=1,
        feedforward_channels=8, in_channels=8, out_channels=8, dropout=0.0, conv_kernel_size=1,
        ffn_act_cfg=act, with_ffn=True,
        feat_transform_cfg=dict(conv_cfg=dict(type='Conv2d'), act_cfg=None),
        kernel_updator_cfg=dict(type='KernelUpdator', in_channels=8, feat_channels=8,
                                out_channels=8, act_cfg=act, norm_cfg=norm),
    )  # fmt: skip
    options = options_of(kind)
    return dict(type='IterativeDecodeHead', num_stages=1, kernel_update_head=[update],
                kernel_generate_head=head(kind, **options))  # fmt: skip


@pytest.mark.parametrize('kind', ['DGCWHead', 'CAAHead'])
def test_kernel_generate_head_of_knet(kind):
    check(tiny_segmentor.build(knet(kind), 'EncoderDecoder'))


@pytest.mark.parametrize('kind', MEMORIES)
def test_a_memory_can_not_be_in_knet(kind):
    model = tiny_segmentor.build(knet(kind), 'EncoderDecoder')
    with pytest.raises(NotImplementedError, match=f'{kind} can not be the kernel_generate_head'):
        tiny_segmentor.train_step(model)
