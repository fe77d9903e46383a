"""Images of other channels and depths than photographs train, validate and start a memory."""

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from mmseg_cmdl.data_guard import guard_data
from tests import tiny

pytestmark = pytest.mark.usefixtures('quick_runner')
KINDS = {
    'four bands of 8 bits': (4, np.uint8, '.png'),
    'four bands of 16 bits': (4, np.uint16, '.tif'),
    'grey': (1, np.uint8, '.png'),
    'grey of 16 bits': (1, np.uint16, '.tif'),
}


@pytest.fixture
def quick_runner(monkeypatch):
    """A Runner without what takes seconds: compilers' versions, a config laid out by yapf."""
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)
    monkeypatch.setattr(Config, 'pretty_text', property(str))


@pytest.mark.parametrize('kind', KINDS)
def test_training_and_validation(kind, tmp_path):
    channels, dtype, suffix = KINDS[kind]
    top = np.iinfo(dtype).max
    root = tiny.write_dataset(tmp_path / 'data')
    for path in (root / 'images').rglob('*.png'):
        bands = np.array(Image.open(path)).astype(np.float64) / 255 * top
        bands = np.concatenate([bands, bands[..., :1]], -1)[..., :channels].astype(dtype)
        path.unlink()
        assert cv2.imwrite(str(path.with_suffix(suffix)), bands)
    cfg = Config.fromfile(tiny.write_config(tmp_path / 'tiny.py', root))
    cfg.model.backbone.in_channels = channels
    cfg.model.data_preprocessor.update(
        mean=[top / 2] * channels, std=[top / 4] * channels, bgr_to_rgb=False
    )
    losses = [dict(type='ClassLocalConsistencyLoss'), dict(type='ClassGlobalConsistencyLoss')]
    cfg.model.decode_head.update(type='MDRLHead', loss_consistency=losses)
    for split in ('train', 'val'):
        dataset = cfg[f'{split}_dataloader'].dataset
        dataset.img_suffix = suffix
        dataset.pipeline[0].color_type = 'unchanged'
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
