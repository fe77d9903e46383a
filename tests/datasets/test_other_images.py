"""Images of other channels and depths than photographs train, validate and start a memory."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmseg.registry import MODELS
from PIL import Image

from mmseg_cmdl.analysis.examined_model import as_picture
from mmseg_cmdl.data_guard import guard_data
from mmseg_cmdl.environment import is_fork
from tests import tiny
from tests.guarantees import jobs
from tests.paths import TOOLS, load_script

pytestmark = pytest.mark.usefixtures('quick_runner')
KINDS = {
    'four bands of 8 bits': (4, np.uint8, '.png'),
    'four bands of 16 bits': (4, np.uint16, '.tif'),
    'grey': (1, np.uint8, '.png'),
    'grey of 16 bits': (1, np.uint16, '.tif'),
}


def job(kind, folder):
    """Config of an MDRL job on such images; the tiny data set with bands of another kind."""
    channels, dtype, suffix = KINDS[kind]
    if channels == 4 and is_fork():
        pytest.skip("the fork's data preprocessor takes means of one or three channels only")
    top = np.iinfo(dtype).max
    root = tiny.write_dataset(folder / 'data')
    for path in (root / 'images').rglob('*.png'):
        bands = np.array(Image.open(path)).astype(np.float64) / 255 * top
        bands = np.concatenate([bands, bands[..., :1]], -1)[..., :channels].astype(dtype)
        path.unlink()
        assert cv2.imwrite(str(path.with_suffix(suffix)), bands)
    cfg = Config.fromfile(tiny.write_config(folder / 'tiny.py', root))
    cfg.custom_imports = dict(imports=['mmseg_cmdl'], allow_failed_imports=False)
    cfg.model.backbone.in_channels = channels
    cfg.model.data_preprocessor.update(
        mean=[top / 2] * channels, std=[top / 4] * channels, bgr_to_rgb=False
    )
    losses = [dict(type='ClassLocalConsistencyLoss'), dict(type='ClassGlobalConsistencyLoss')]
    cfg.model.decode_head.update(type='MDRLHead', loss_consistency=losses)
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        dataset.img_suffix = suffix
        dataset.pipeline[0].color_type = 'unchanged'
    return cfg


@pytest.mark.parametrize('kind', KINDS)
def test_training_and_validation(kind, tmp_path):
    channels = KINDS[kind][0]
    cfg = job(kind, tmp_path)
    cfg.work_dir, cfg.experiment_name = str(tmp_path / 'work'), tmp_path.name
    cfg.visualizer.name = tmp_path.name
    runner = Runner.from_cfg(cfg)
    seen = []
    runner.model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    guard_data(runner, 'train', 'val')
    runner.train()
    assert {images.shape[1] for images in seen} == {channels}
    # all bits arrive: the low byte of 16 alone would be noise around the mean
    assert max(float(images.max()) for images in seen) > 0.8
    assert min(float(images.min()) for images in seen) < -1
    assert runner.model.decode_head.bank.num_updates == 4
    assert 0 <= runner.message_hub.get_scalar('val/mIoU').current() <= 100


@pytest.mark.parametrize('kind', ['four bands of 16 bits', 'grey of 16 bits'])
def test_tools(kind, tmp_path):
    """Each reads them, and draws."""
    init_default_scope('mmseg')
    cfg = job(kind, tmp_path)
    config, trained = str(tmp_path / 'mdrl.py'), str(tmp_path / 'mdrl.pth')
    jobs.dump(cfg, tmp_path / 'mdrl.py')
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), trained)
    cfg.model.type = 'CAREncoderDecoder'
    car, car_trained = str(tmp_path / 'car.py'), str(tmp_path / 'car.pth')
    jobs.dump(cfg, tmp_path / 'car.py')
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), car_trained)
    out = tmp_path / 'out'
    for tool, arguments in (
        ('test.py', [config, trained, '--work-dir', f'{out}/test']),
        ('init_memory.py', [config, f'{out}/memory.pth', '--checkpoint', trained]),
        ('fold_car.py', [car, car_trained, f'{out}/folded.pth', '--check']),
        ('analysis/complexity.py', ['--configs', config, '--size', '1', '64', '4', '4',
                                    '--channels', '16', '--out', f'{out}/costs']),
        ('analysis/distribution_map.py', [config, trained, '--out', f'{out}/map']),
        ('analysis/compare_predictions.py', [config, trained, '--out', f'{out}/cases']),
    ):  # fmt: skip
        load_script(TOOLS / tool).main(arguments)
    figure = np.array(Image.open(out / 'cases' / 'predictions.png').convert('L'))
    assert figure.std() > 20


def test_pictures_are_scaled_for_the_eye():
    """By their percentiles, not by the low byte; 8 bits, and numbers of 8 bits, as they are."""
    steps = np.arange(256).reshape(16, 16, 1)
    # of 0..255, three times each, percentiles 1 and 99 are 2 and 253
    expected = ((steps - 2) / 251 * 255).round().clip(0, 255).repeat(3, axis=2)
    for image in (
        (steps * 256).astype(np.uint16), steps / 255, (steps - 128) * 1e3,
    ):  # fmt: skip
        got = as_picture(image)
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, expected)
    for image in (steps.astype(np.uint8), steps.astype(np.uint16), steps.astype(np.float32)):
        np.testing.assert_array_equal(as_picture(image), steps.repeat(3, axis=2))
    bands = np.random.default_rng(0).integers(0, 256, (4, 5, 6), np.uint8)
    np.testing.assert_array_equal(as_picture(bands), bands[..., :3])
    broken = np.where(steps == 7, np.nan, steps * 256.0)
    assert as_picture(broken)[0, 7].tolist() == [0, 0, 0]
    assert as_picture(broken).max() == 255
