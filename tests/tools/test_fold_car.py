"""tools/fold_car.py: train with CAR through the Runner, fold, and test the plain segmentor."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from tests import tiny
from tests.paths import TOOLS, load_script
from tests.tools.test_train_test import metrics, own_folder, run, test, train  # noqa: F401

fold = load_script(TOOLS / 'fold_car.py')


def write_car_config(path, base, options=''):
    path.write_text(f"_base_ = '{base.name}'\nmodel = dict(type='CAREncoderDecoder'{options})\n")
    return path


@pytest.fixture(scope='module')
def job(tmp_path_factory, tiny_data):
    """(plain config, CAR config, checkpoint) of a job with CAR that learnt something."""
    folder = tmp_path_factory.mktemp('car_job')
    plain = tiny.write_config(folder / 'tiny_fcn.py', tiny_data, iterations=40, interval=20)
    config = write_car_config(folder / 'car_tiny_fcn.py', plain, ", pointwise=['convs.0']")
    run(train.main, config, '--work-dir', folder / 'work')
    return plain, config, folder / 'work' / 'iter_40.pth'


def test_folded_checkpoint_has_the_same_metrics_under_the_plain_config(job, tmp_path, capsys):
    plain, config, checkpoint = job
    fold.main([str(config), str(checkpoint), 'plain.pth', '--check', '--size', '32', '48'])
    assert 'largest difference' in capsys.readouterr().out
    run(test.main, config, checkpoint, '--work-dir', tmp_path / 'car')
    run(test.main, plain, 'plain.pth', '--work-dir', tmp_path / 'plain')
    expected, got = metrics(tmp_path / 'car'), metrics(tmp_path / 'plain')
    assert expected['mIoU'] > 20  # more than one class everywhere would have
    assert got['mIoU'] == expected['mIoU']
    saved = torch.load('plain.pth', weights_only=True)
    assert set(saved) == {'meta', 'state_dict'}
    assert not any(key.startswith('car.') for key in saved['state_dict'])
    assert saved['state_dict']['decode_head.convs.0.conv.weight'].shape[2:] == (3, 3)
    assert saved['meta']['dataset_meta']['classes'] == tiny.CLASSES


def test_out_config_is_the_plain_one_and_complete(job, tmp_path):
    plain, config, checkpoint = job
    fold.main([str(config), str(checkpoint), 'plain.pth', '--out-config', 'sub/plain.py'])
    assert Config.fromfile('sub/plain.py').model == Config.fromfile(plain).model
    run(test.main, 'sub/plain.py', 'plain.pth', '--work-dir', tmp_path / 'test')
    assert metrics(tmp_path / 'test')['mIoU'] > 20


def test_a_plain_checkpoint_has_the_same_metrics_under_car(job, tmp_path):
    plain, config, checkpoint = job
    fold.main([str(config), str(checkpoint), 'plain.pth'])
    config = write_car_config(plain.parent / 'car_plain.py', plain)
    run(test.main, plain, 'plain.pth', '--work-dir', tmp_path / 'plain')
    run(test.main, config, 'plain.pth', '--work-dir', tmp_path / 'car')
    assert metrics(tmp_path / 'plain') == metrics(tmp_path / 'car')
    assert metrics(tmp_path / 'plain')['mIoU'] > 20


def test_check_fails_and_writes_nothing_where_predictions_differ(job, monkeypatch):
    _, config, checkpoint = job
    right = fold.MODELS.get('CAREncoderDecoder').folded_state_dict

    def wrong(self):
        state = right(self)
        state['decode_head.conv_seg.weight'] = state['decode_head.conv_seg.weight'] * 1.01
        return state

    monkeypatch.setattr(fold.MODELS.get('CAREncoderDecoder'), 'folded_state_dict', wrong)
    with pytest.raises(SystemExit, match='does not predict the same'):
        fold.main([str(config), str(checkpoint), 'plain.pth', '--check'])
    assert not (checkpoint.parent / 'plain.pth').exists()
    fold.main([str(config), str(checkpoint), 'plain.pth'])  # only --check looks


def test_the_place_of_the_authors_code_folds_where_its_conv_is_1x1(job, tmp_path, capsys):
    plain = job[0]
    place = 'convs.0'  # the only conv of that head
    options = f", position='released', pointwise=['{place}']"
    released = write_car_config(plain.parent / 'car_released.py', plain, options)
    run(train.main, released, '--work-dir', tmp_path / 'work')
    checkpoint = tmp_path / 'work' / 'iter_40.pth'
    fold.main([str(released), str(checkpoint), 'plain.pth', '--check', '--size', '32', '48'])
    assert 'largest difference' in capsys.readouterr().out
    run(test.main, released, checkpoint, '--work-dir', tmp_path / 'car')
    run(test.main, plain, 'plain.pth', '--work-dir', tmp_path / 'plain')
    assert metrics(tmp_path / 'plain')['mIoU'] == metrics(tmp_path / 'car')['mIoU'] > 20
    # a 3x3 conv pads after the bias
    options = ", position='released'"
    larger = write_car_config(plain.parent / 'car_larger.py', plain, options)
    model = fold.build(Config.fromfile(larger).model)
    torch.save(dict(state_dict=model.state_dict()), 'larger.pth')
    with pytest.raises(SystemExit, match=rf'larger\.pth: {place} .* with pointwise='):
        fold.main([str(larger), 'larger.pth', 'out.pth'])
    assert not Path('out.pth').exists()


def test_mistakes_are_named(job, tmp_path, capsys):
    plain, config, checkpoint = job
    with pytest.raises(SystemExit, match="'EncoderDecoder', which has nothing to fold"):
        fold.main([str(plain), str(checkpoint), 'out.pth'])
    fold.main([str(config), str(checkpoint), 'plain.pth'])
    with pytest.raises(SystemExit, match=r'plain\.pth has no car\.linear\.weight'):
        fold.main([str(config), 'plain.pth', 'out.pth'])
    options = ['--cfg-options', 'model.decode_head.channels=24']
    with pytest.raises(SystemExit, match='does not fit the config'):
        fold.main([str(config), str(checkpoint), 'out.pth', *options])
    with pytest.raises(SystemExit):
        fold.main([str(config), 'plain.pth', 'plain.pth'])
    assert 'which is also the input; name another' in capsys.readouterr().err
