"""Arms as configs, and which folder may be gone on with."""

import json

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from mmseg_cmdl.shipped_configs import configs_folder
from mmseg_cmdl.study import plan


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmseg')


@pytest.mark.parametrize(('method', 'head'), [
    ('mdrl', 'MDRLHead'), ('mcibi', 'MCIBIHead'), ('mcibipp', 'MCIBIPlusPlusHead'),
    ('protoseg', 'ProtoSegHead'), ('dgcw', 'DGCWHead'), ('psp', 'PSPHead'), ('mdrl@nl', 'MDRLHead'),
    ('mcibi+car', 'MCIBIHead'),
])  # fmt: skip
def test_methods_build_and_keep_the_rest(tiny_config, method, head):
    base, arm = plan.resolve(tiny_config, [method])
    assert (base.name, arm.name) == ('fcn', method)
    model = MODELS.build(arm.config.model)
    assert type(model.decode_head).__name__ == head
    assert type(model).__name__ == ('CAREncoderDecoder' if 'car' in method else 'EncoderDecoder')
    assert model.decode_head.num_classes == 3
    assert model.decode_head.channels == 16
    assert base.config.model.decode_head.type == 'FCNHead'
    assert base.config.train_dataloader == arm.config.train_dataloader
    assert base.fingerprint != arm.fingerprint


def test_a_head_other_than_fcn_stays_as_context(tiny_config):
    text = tiny_config.read_text()
    start = text.index("type='FCNHead'")
    end = text.index('norm_cfg=norm_cfg, align_corners', start)
    tiny_config.write_text(
        text[:start]
        + "type='PSPHead', in_channels=64, in_index=0, channels=16, pool_scales=(1, 2),"
        + ' num_classes=3, '
        + text[end:]
    )
    arms = plan.resolve(tiny_config, ['psp', 'mdrl', 'mcibi@none', 'mdrl@nl'])
    heads = {arm.name: arm.config.model.decode_head for arm in arms}
    assert heads['mdrl'].context == dict(type='PSPHead')
    assert 'context' not in heads['mcibi@none']
    assert 'pool_scales' not in heads['mcibi@none']  # which MCIBIHead refuses
    assert heads['mdrl@nl'].context == dict(type='NLHead')
    model = MODELS.build(arms[1].config.model)
    assert len(model.decode_head.context.head.psp_modules) == 2  # pool_scales went with it


@pytest.mark.parametrize('method', ['mdrl@none', 'dgcw@none', 'protoseg@none', 'mcibi@none'])
@pytest.mark.parametrize(
    'config',
    [
        'mdrl/mdrl_pspnet_r50-d8_4xb4-160k_ade20k-512x512.py',
        'baselines/upernet_swin-t_8xb2-160k_cityscapes-512x1024.py',
    ],
)
def test_none_leaves_out_the_context_and_the_old_heads_options(config, method):
    """Of a head with a memory and a context, and of a decoder of several maps."""
    arm = plan.resolve(configs_folder() / config, [method])[-1]
    assert arm.name in (method, 'mdrl')
    built = MODELS.build(arm.config.model.decode_head)
    assert built.context is None
    assert isinstance(built.in_channels, int)


@pytest.mark.parametrize(
    ('method', 'message'),
    [
        ('mdlr', "there is no method 'mdlr': it is car, a registered decode head such as mdrl"),
        ('mdrl@n', "there is no method 'mdrl@n'"),
        ('mdrl+mcibi', 'names two heads'),
        ('psp@nl', 'PSPHead takes no context'),
        ('protoseg@ocr', "arm 'protoseg@ocr' can not be built: context: OCRHead also needs"),
    ],
)
def test_methods_that_are_none(tiny_config, method, message):
    with pytest.raises(plan.StudyError, match=message.replace('+', r'\+')):
        plan.resolve(tiny_config, [method])


def test_arms_by_name(tiny_config, tmp_path):
    other = tmp_path / 'other.py'
    other.write_text(tiny_config.read_text().replace('lr=0.05', 'lr=0.02'))
    arms = plan.resolve(
        tiny_config,
        ['mdrl'],
        [
            'n3: mdrl model.decode_head.bank.num_distributions=3 optim_wrapper.optimizer.lr=0.1',
            'wide: model.decode_head.channels=32',
            # an entry of a default that stands in code
            'unweighted: mdrl model.decode_head.loss_consistency.0.loss_weight=0',
            f'other: {other}',
        ],
        options={'optim_wrapper.optimizer.momentum': 0.5},
    )
    assert [arm.name for arm in arms] == ['fcn', 'mdrl', 'n3', 'wide', 'unweighted', 'other']
    configs = {arm.name: arm.config for arm in arms}
    assert configs['n3'].model.decode_head.bank.num_distributions == 3
    assert configs['wide'].model.decode_head.channels == 32
    losses = configs['unweighted'].model.decode_head.loss_consistency
    assert [loss.loss_weight for loss in losses] == [0, 0.05]
    rates = [c.optim_wrapper.optimizer.lr for c in configs.values()]
    assert rates == [0.05, 0.05, 0.1, 0.05, 0.05, 0.02]
    assert {c.optim_wrapper.optimizer.momentum for c in configs.values()} == {0.5}


@pytest.mark.parametrize(
    ('arms', 'message'),
    [
        (['mdrl model.x=3'], 'must read'),
        (['a: mdrl mcibi'], 'must read'),
        (['a b: mdrl'], "arm 'a b': a name is of letters"),
        (['a: mdrl', 'A: mcibi'], "two arms are called 'A'"),
        (['a: custom_hooks=[dict(type="H",begin=2)]'], "arm 'a': .*a dict reads {'a':1,'b':2}"),
        (['a: model.decode_head.0.channels=3'], "arm 'a': .*is one dict, not a list"),
    ],
)
def test_arms_that_are_none(tiny_config, arms, message):
    with pytest.raises(plan.StudyError, match=message):
        plan.resolve(tiny_config, [], arms)


def test_shorter_with_its_schedule():
    cfg = Config(
        dict(
            train_cfg=dict(max_iters=1000, val_interval=300),
            param_scheduler=[
                dict(type='LinearLR', begin=0, end=100, by_epoch=False),
                dict(
                    type='MultiStepLR', begin=100, end=1000, milestones=[500, 900], by_epoch=False
                ),
                dict(type='ConstantLR', end=5),
            ],
            default_hooks=dict(checkpoint=dict(interval=500)),
        )
    )
    plan.shorten(cfg, 100)
    assert cfg.train_cfg == dict(max_iters=100, val_interval=30)
    linear, steps, epochs = cfg.param_scheduler
    assert (linear.begin, linear.end) == (0, 10)
    assert (steps.begin, steps.end, steps.milestones) == (10, 100, [50, 90])
    assert epochs.end == 5
    assert cfg.default_hooks.checkpoint.interval == 50
    with pytest.raises(plan.StudyError, match='count in iterations'):
        plan.shorten(Config(dict(train_cfg=dict(max_epochs=10))), 5)


def test_a_folder_goes_on_with_more_arms_and_refuses_another_config(tiny_config, tmp_path):
    folder = tmp_path / 'study'
    plan.save(folder, plan.resolve(tiny_config, ['mdrl']))
    found = plan.save(folder, plan.resolve(tiny_config, ['car']))
    assert list(found['arms']) == ['fcn', 'mdrl', 'car']
    assert found['arms']['car']['changes'] == {'model.type': 'CAREncoderDecoder'}

    # other paths and loaders: another machine
    text = tiny_config.read_text()
    tiny_config.write_text(text.replace('num_workers=0', 'num_workers=2'))
    plan.save(folder, plan.resolve(tiny_config))

    tiny_config.write_text(text.replace('lr=0.05', 'lr=0.01'))
    before = (folder / 'plan.json').read_text()
    with pytest.raises(plan.StudyError) as error:
        plan.save(folder, plan.resolve(tiny_config))
    assert 'study was made with another config' in str(error.value)
    assert 'optim_wrapper.optimizer.lr: 0.05 there, 0.01 now' in str(error.value)
    assert (folder / 'plan.json').read_text() == before

    tiny_config.write_text(text)
    arms = plan.resolve(tiny_config, [], ['mdrl: mdrl model.decode_head.hard_aggregate=True'])
    with pytest.raises(plan.StudyError, match="another arm called 'mdrl'") as error:
        plan.save(folder, arms)
    assert 'model.decode_head.hard_aggregate: None there, True now' in str(error.value)
    with pytest.raises(plan.StudyError, match='--precise-bn: 0 there, 5 now'):
        plan.save(folder, plan.resolve(tiny_config, precise_bn=5), 5)


def test_a_plan_names_nothing_of_the_machine(tiny_config, tiny_data, tmp_path):
    arms = plan.resolve(tiny_config, ['mdrl'], results=tmp_path / 'study' / 'results')
    words = ['study.py', 'configs/x.py', '--work-dir', str(tmp_path / 'earth')]
    words += ['--arm', f'mine: {tmp_path}/y.py lr=/1', '--cfg-options', f'a.data_root={tiny_data}']
    plan.save(tmp_path / 'study', arms, command=plan.command_line(words))
    text = (tmp_path / 'study' / 'plan.json').read_text()
    assert json.loads(text)['commands'] == [
        "study.py configs/x.py --work-dir earth --arm 'mine: y.py lr=1' --cfg-options"
    ]
    assert str(tiny_data) not in text
    assert str(tmp_path) not in text
