"""Every head, loss and segmentor works with what people do to models."""

import copy
import pickle
import shutil

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmseg.models import SegTTAModel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from tests import tiny
from tests.guarantees import cases
from tests.guarantees.cases import assert_same, everything
from tests.reference.dispatch import SumsOverMaps


def double(name, **options):
    return cases.build(name, dtype=torch.float64, norm='GN', **options)


ALL = pytest.mark.parametrize('name', cases.CASES)


def test_decoders_have_the_strides_of_a_shipped_config():
    """What holds for these two cases holds for what a user gets."""
    for name in ('mdrl_segformer', 'mcibi_uper'):
        head = cases.build(name).decode_head
        assert head.pixels == 'context'
        assert (head.relation.key_stride, head.loss_stride) == (8, 4)


@ALL
def test_gradient_accumulation(name):
    """OptimWrapper with accumulative_counts=2: the mean of two gradients, one step, two updates."""
    model, by_hand = double(name), double(name)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), accumulative_counts=2)
    wrapper.initialize_count_status(model, 0, 4)
    weights = dict(model.named_parameters())
    before = {key: p.detach().clone() for key, p in weights.items()}
    for seed in range(2):
        images, samples = cases.batch(seed, dtype=torch.float64)
        if seed == 1:  # not yet
            assert all(torch.equal(p, before[key]) for key, p in weights.items())
        wrapper.update_params(cases.objective(model.loss(images, samples)))
        cases.step(by_hand, seed)
    for key, p in by_hand.named_parameters():
        expected = before[key] - 0.1 * p.grad / 2
        torch.testing.assert_close(weights[key].detach(), expected.detach(), rtol=0, atol=1e-12)
    assert_same(cases.memory(model), cases.memory(by_hand))


@ALL
@pytest.mark.parametrize('norm', ['BN', 'GN'])
@pytest.mark.parametrize('reentrant', [False, True])
def test_activation_checkpointing(name, norm, reentrant):
    """Recomputed in backward, after bank and statistics have moved: same gradients, one update."""
    plain = cases.build(name, dtype=torch.float64, norm=norm)
    cases.step(plain)
    plain.zero_grad()
    model = copy.deepcopy(plain)
    cases.step(plain, 1)
    images, samples = cases.batch(1, dtype=torch.float64)
    images.requires_grad_()
    total = checkpoint(
        lambda x: cases.objective(model.loss(x, samples)), images, use_reentrant=reentrant
    )
    total.backward()
    assert_same(cases.gradients(model), cases.gradients(plain), atol=1e-12)
    assert_same(cases.memory(model), cases.memory(plain), atol=1e-12)


# mmcv's criss-cross attention makes a constant on the CPU
@pytest.mark.parametrize('name', [n for n in cases.CASES if not n.endswith('_cc')])
def test_nothing_is_made_on_another_device(name):
    """What a step makes, it makes where the features are: a copy to a GPU would wait for it.

    The default device stands for the CPU here, and the CPU for the GPU.
    """
    model = cases.build(name)
    cases.step(model)
    model.zero_grad()
    images, samples = cases.batch()
    with torch.device('meta'):
        cases.objective(model.loss(images, samples)).backward()
        model.eval()
        with torch.no_grad():
            model(images)


@ALL
def test_no_sum_that_cuda_has_no_deterministic_form_of(name):
    """mmengine's `randomness=dict(deterministic=True)` makes an error of it on a GPU."""
    model = cases.build(name)
    with SumsOverMaps() as sums:
        cases.step(model)
    assert not sums.found


@ALL
def test_frozen_backbone(name):
    """The head learns as before, the backbone gets nothing."""
    plain, model = double(name), double(name)
    model.backbone.requires_grad_(False)
    cases.step(plain)
    cases.step(model)
    for key, p in model.named_parameters():
        if key.startswith('backbone'):
            assert p.grad is None
        else:
            expected = plain.get_parameter(key).grad
            torch.testing.assert_close(p.grad, expected, rtol=0, atol=1e-12)
    assert_same(cases.memory(model), cases.memory(plain))


@ALL
@pytest.mark.parametrize('way', ['deepcopy', 'pickle'])
def test_copies_go_on_alone(name, way):
    """The copy of a model in the middle of its training trains as the model does, by itself."""
    model = double(name)
    cases.step(model)
    model.zero_grad()
    twin = copy.deepcopy(model) if way == 'deepcopy' else pickle.loads(pickle.dumps(model))
    kept = everything(model)
    cases.step(twin, 1)
    assert_same(everything(model), kept)
    cases.step(model, 1)
    assert_same(everything(twin), everything(model))


def views(sizes, flips=(False, True)):
    """What TestTimeAug gives: for each view the images and samples that know how they were made."""
    inputs, samples = [], []
    for size in sizes:
        for flip in flips:
            images, labelled = cases.batch(3, 1, torch.float64, image_size=size)
            labelled[0].set_metainfo(
                dict(ori_shape=cases.SIZE, img_shape=size, pad_shape=size, flip=flip,
                     flip_direction='horizontal' if flip else None, padding_size=[0] * 4)
            )  # fmt: skip
            inputs.append(images.flip(3) if flip else images)
            samples.append(labelled)
    return inputs, samples


@ALL
def test_multi_scale_and_flip_at_test_time(name):
    """SegTTAModel: the mean over the views of the probabilities, turned back and resized."""
    model = double(name)
    cases.step(model)
    before = everything(model)
    tta = SegTTAModel(module=model).eval()
    inputs, samples = views([(32, 40), (24, 30), (48, 60)])
    with torch.no_grad():
        predictions = [model.predict(x, s) for x, s in zip(inputs, samples)]
        (result,) = tta.merge_preds(list(zip(*predictions)))
        total = 0
        for x, sample in zip(inputs, samples):
            logits = model.encode_decode(x, [sample[0].metainfo])
            logits = logits.flip(3) if sample[0].flip else logits
            logits = torch.nn.functional.interpolate(
                logits, size=cases.SIZE, mode='bilinear', align_corners=False
            )
            total = total + logits.softmax(1)
    predicted = result.pred_sem_seg.data
    assert predicted.shape[-2:] == cases.SIZE
    assert (predicted == total.argmax(1)).double().mean() > 0.99
    assert_same(everything(model), before)


@ALL
@pytest.mark.parametrize('mode', ['whole', 'slide'])
def test_inference_modes(name, mode):
    """`slide` is the mean of the crops' logits; neither mode changes anything."""
    test_cfg = dict(mode=mode)
    if mode == 'slide':
        test_cfg.update(crop_size=(24, 24), stride=(8, 16))
    model = double(name, test_cfg=test_cfg)
    cases.step(model)
    before = everything(model)
    model.eval()
    images, samples = cases.batch(4, dtype=torch.float64)
    metas = [sample.metainfo for sample in samples]
    with torch.no_grad():
        got = model.inference(images, metas)
        if mode == 'whole':
            expected = model.encode_decode(images, metas)
        else:
            total, count = torch.zeros_like(got), torch.zeros_like(got)
            for y in (0, 8):
                for x in (0, 16):
                    crop = images[:, :, y : y + 24, x : x + 24]
                    logits = model.encode_decode(crop, [dict(img_shape=(24, 24))] * 2)
                    total[:, :, y : y + 24, x : x + 24] += logits
                    count[:, :, y : y + 24, x : x + 24] += 1
            expected = total / count
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert_same(everything(model.train()), before)


@ALL
@pytest.mark.parametrize('norm', ['BN', 'GN', 'SyncBN'])
def test_norms_and_a_batch_of_one(name, norm):
    """SyncBN needs CUDA; reverted, as mmengine does it on a CPU, it is BN."""
    model = cases.build(name, norm=norm)
    if norm == 'SyncBN':
        assert any(isinstance(m, torch.nn.SyncBatchNorm) for m in model.modules())
        model = revert_sync_batchnorm(model).train()
    batch = 1
    pools_to_one_pixel = name.endswith(('psp', 'aspp', 'released', 'caa')) and norm != 'GN'
    if pools_to_one_pixel:
        batch = 2  # PyTorch's BN refuses one value per channel, in any head that pools to 1x1
    _, total = cases.step(model, size=batch)
    assert total.isfinite()
    for key, p in model.named_parameters():
        assert p.grad is not None, key
        assert p.grad.isfinite().all(), key
    if batch == 2:
        with pytest.raises(ValueError, match='more than 1 value per channel'):
            cases.step(model, size=1)


def weightless(config):
    """The config with every loss that isn't the plain head's switched off."""
    head = cases.last(config['decode_head'])
    if head['type'] == 'MDRLHead':
        losses = [dict(type=f'Class{kind}ConsistencyLoss') for kind in ('Local', 'Global')]
        losses = head.get('loss_consistency', losses)
        head['loss_consistency'] = [dict(loss, loss_weight=0.0) for loss in losses]
    if head['type'] == 'ProtoSegHead':
        head['loss_prototype'] = [dict(type=name, loss_weight=0.0) for name in (
            'PixelPrototypeContrastLoss', 'PixelPrototypeDistanceLoss')]  # fmt: skip
    if head['type'] == 'MCIBIHead':
        head['loss_memory'] = dict(type='CrossEntropyLoss', loss_weight=0.0)
    if config['type'].startswith('CAR'):
        config['losses'] = [dict(type=name, loss_weight=0.0) for name in (
            'IntraClassCenterToPixelLoss', 'InterClassCenterToCenterLoss',
            'InterClassCenterToPixelLoss')]  # fmt: skip
    return config


# of the others no loss can be left out
WITH_LOSSES = [
    name
    for name in cases.CASES
    if name.startswith('car') or (name in cases.WITH_MEMORY and 'mcibipp' not in name)
]


@pytest.mark.parametrize('name', WITH_LOSSES)
def test_loss_weight_zero_is_the_model_built_without_the_loss(name):
    """Losses and the gradient of every weight, bit for bit, and the memory."""
    config, steps = weightless(cases.model_config(name, norm='GN')), 2
    plain = copy.deepcopy(config)
    if name.startswith('car'):
        config['linear'] = False
        plain = {key: value for key, value in plain.items()
                 if key not in ('losses', 'linear', 'formulation')}  # fmt: skip
        plain['type'] = config['type'][3:]
    elif name.startswith('mdrl'):
        # without a loss there is no projection; the first step reads the same bank nevertheless
        plain['decode_head'].update(loss_consistency=[], embedding='pixel')
        steps = 1
    else:
        option = 'loss_prototype' if name.startswith('protoseg') else 'loss_memory'
        plain['decode_head'][option] = None
    torch.manual_seed(0)
    model = cases.from_config(config).double().train()
    plain = cases.from_config(plain).double().train()
    missing, unexpected = plain.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    assert all('.consistency.losses.' in key or '.projection.' in key for key in unexpected)
    weights = dict(plain.named_parameters())
    for seed in range(steps):
        expected, _ = cases.step(plain, seed)
        got, _ = cases.step(model, seed)
        assert 'decode.loss_ce' in expected or 'decode_1.loss_ce' in expected
        for key, value in expected.items():
            if not key.endswith('acc_distribution'):
                assert torch.equal(torch.as_tensor(got[key]), torch.as_tensor(value)), key
        extra = [key for key in got if 'loss' in key and key not in expected]
        assert extra
        assert all(got[key] == 0 for key in extra)
        for key, p in model.named_parameters():
            if key in weights:
                assert torch.equal(p.grad, weights[key].grad), key
            else:
                assert not p.grad.any(), key
    if name in cases.WITH_MEMORY and not name.startswith('mdrl'):
        assert_same(cases.memory(model), cases.memory(plain))


# Graphs, hooks, in-place updates and saved tensors as compiled; and with generated code, which on a
# CPU is C++ (the fault that it had, in short: test_every_bank.py).
BACKENDS = [
    'aot_eager',
    pytest.param(
        'inductor',
        marks=[
            pytest.mark.long,
            pytest.mark.skipif(not shutil.which('g++'), reason='needs a C++ compiler'),
        ],
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('name', cases.shared(['mdrl'], cases.METHODS))
def test_compiled_model(name, backend):
    """torch.compile of the whole training step: the same losses, gradients and bank."""
    if not hasattr(torch, 'compile'):
        pytest.skip('torch.compile came with PyTorch 2.0')
    plain, model = cases.build(name, norm='GN'), cases.build(name, norm='GN')
    compiled = torch.compile(model, backend=backend)
    for seed in range(3):
        images, samples = cases.batch(seed)
        model.zero_grad()
        cases.objective(compiled(images, samples, mode='loss')).backward()
        plain.zero_grad()
        cases.step(plain, seed)
        assert_same(cases.gradients(model), cases.gradients(plain), atol=2e-5)
        got, expected = cases.memory(model), cases.memory(plain)
        assert_same(got, expected, atol=2e-5)
    model.eval()
    with torch.no_grad():
        got = compiled(images, samples, mode='tensor')
        torch.testing.assert_close(got, plain.eval()(images, mode='tensor'), rtol=0, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.long
def test_compile_option_of_the_runner(tiny_data, tmp_path, quick_runner):
    """`compile=dict(...)` in a config compiles train_step, with the optimizer and the bank's update."""  # noqa: E501
    found = []
    for name, options in (('plain', {}), ('compiled', dict(compile=dict(backend='aot_eager')))):
        cfg = Config.fromfile(tiny.write_config(tmp_path / f'{name}.py', tiny_data))
        model = cases.model_config('mdrl', num_classes=len(tiny.CLASSES))
        model['data_preprocessor'] = cfg.model.data_preprocessor.to_dict()
        cfg.model = model
        cfg.merge_from_dict(dict(work_dir=str(tmp_path / name), experiment_name=name, **options))
        cfg.visualizer.name = name
        runner = Runner.from_cfg(cfg)
        runner.train()
        found.append(runner.model.state_dict())
    plain, compiled = found
    assert compiled['decode_head.bank.num_updates'] == 4
    assert plain.keys() == compiled.keys()
    for key, value in plain.items():
        torch.testing.assert_close(compiled[key], value, rtol=0, atol=2e-5, msg=key)
    torch._dynamo.reset()


def test_frozen_statistics_of_batch_norm():
    """`norm_eval`-like training: running statistics stay, also those behind the memory's classes."""  # noqa: E501
    for name in cases.CASES:
        model = cases.build(name)
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        before = {k: v.clone() for k, v in model.state_dict().items() if 'running' in k}
        cases.step(model)
        assert before
        for key, value in before.items():
            assert torch.equal(model.state_dict()[key], value), (name, key)
