"""Each method trains through `mim train`, on the synthetic scenes and, where it is, on CamVid.

What one job must show in full (resuming, both ways to predict) is in test_end_to_end.py for MDRL.
Memories also start from pixels of CamVid. What trains on CamVid takes minutes each and is left out
of `make test`: `pytest -m long tests/test_methods_end_to_end.py`.
"""

import sys

import numpy as np
import pytest
import torch

from mmseg_cmdl.models.memory import InitialMemory
from tests.doors import config, run, scalars, through_mim
from tests.paths import TOOLS
from tests.test_end_to_end import NO_WORKERS, roots

SCENES = 'demo_synthetic-128x128'
CAMVID = '200it_camvid-180x240'
CAR = ['model.type=CAREncoderDecoder']
# by method: stem of the config, options, and a key that only its checkpoints have
METHODS = dict(
    mcibi=('mcibi/mcibi_fcn_r18s-d8_1xb8-{}.py', [], 'decode_head.bank.features'),
    dgcw=('dgcw/dgcw_fcn_r18s-d8_1xb8-{}.py', [], 'decode_head.layer.query.weight'),
    car=('baselines/fcn_r18s-d8_1xb8-{}.py', CAR, 'car.linear.weight'),
    car_on_mdrl=('mdrl/mdrl_fcn_r18s-d8_1xb8-{}.py', CAR, 'decode_head.bank.distributions'),
    car_on_dgcw=('dgcw/dgcw_fcn_r18s-d8_1xb8-{}.py', CAR, 'car.linear.weight'),
)
FEW = [
    'train_cfg.max_iters=12', 'train_cfg.val_interval=12', 'default_hooks.logger.interval=2',
    'default_hooks.checkpoint.interval=12', 'train_dataloader.batch_size=2',
    'val_dataloader.dataset.length=8', *NO_WORKERS,
]  # fmt: skip


def trained(method, data, folder, *options):
    """(training records, validation records, state) of a job."""
    name, own_options, key = METHODS[method]
    through_mim(
        'train', config(name.format(data)), '--work-dir', 'work', '--cfg-options',
        'randomness.seed=0', *own_options, *options, folder=folder,
    )  # fmt: skip
    records = scalars(folder / 'work')
    state = torch.load((folder / 'work' / 'last_checkpoint').read_text())['state_dict']
    assert key in state
    for name, value in state.items():
        assert value.isfinite().all(), name
    return (
        [record for record in records if 'loss' in record],
        [record for record in records if 'mIoU' in record],
        state,
    )


@pytest.mark.parametrize('method', METHODS)
def test_training_on_the_synthetic_scenes(method, tmp_path):
    records, validated, _ = trained(method, SCENES, tmp_path, *FEW)
    assert [record['step'] for record in records] == [2, 4, 6, 8, 10, 12]
    for record in records:
        parts = [value for key, value in record.items() if 'loss' in key and key != 'loss']
        assert sum(parts) == pytest.approx(record['loss'], abs=2e-3)
        assert np.isfinite(record['loss'])
        if method.startswith('car'):
            assert {'car.loss_intra_c2p', 'car.loss_inter_c2c', 'car.loss_inter_c2p'} <= set(record)
    learned = [record['decode.loss_ce'] for record in records]
    assert np.mean(learned[3:]) < 0.96 * np.mean(learned[:2])
    (last,) = validated
    assert last['step'] == 12
    assert 0 <= last['mIoU'] <= 100


@pytest.mark.long
@pytest.mark.parametrize('method', ['mcibi', 'dgcw'])
def test_training_on_camvid(method, camvid_root, tmp_path):
    records, validated, state = trained(method, CAMVID, tmp_path, *roots(camvid_root))
    losses = np.array([record['loss'] for record in records])
    assert np.isfinite(losses).all()
    assert losses[-5:].mean() < 0.75 * losses[:3].mean()
    # the largest class alone gives less than 3, see test_end_to_end.py
    assert validated[-1]['mIoU'] > 12
    assert validated[-1]['aAcc'] > 50
    if 'decode_head.bank.features' in state:
        assert state['decode_head.bank.filled'].all()


@pytest.mark.long
@pytest.mark.parametrize(
    ('strategy', 'method', 'centers'), [('random', 'mcibi', 1), ('cluster', 'mdrl', 9)]
)
def test_a_head_starts_from_camvids_own_pixels(strategy, method, centers, camvid_root, tmp_path):
    """tools/init_memory.py over the whole train set, and a few iterations from its file."""
    name = config(f'{method}/{method}_fcn_r18s-d8_1xb8-{CAMVID}.py')
    out = run(
        [sys.executable, TOOLS / 'init_memory.py', name, 'memory.pth', '--strategy', strategy,
         '--cfg-options', 'randomness.seed=0', *roots(camvid_root, ['train'])],
        tmp_path,
    )  # fmt: skip
    assert '367' in out  # all images of the train set
    memory = InitialMemory.load(tmp_path / 'memory.pth')
    assert memory.centers.shape[:2] == (11, centers)
    assert memory.filled.all()
    assert memory.centers.isfinite().all()

    # small steps from the start, so that it is still seen after two iterations
    slow = ['model.decode_head.memory_momentum=0.01'] if method == 'mcibi' else []
    through_mim(
        'train', name, '--work-dir', 'work', '--cfg-options', 'randomness.seed=0',
        *roots(camvid_root), *slow, 'model.decode_head.bank.init=memory.pth',
        'train_cfg.max_iters=2', 'train_cfg.val_interval=10', 'default_hooks.checkpoint.interval=2',
        'default_hooks.logger.interval=1', 'train_dataloader.batch_size=2', folder=tmp_path,
    )  # fmt: skip
    state = torch.load(tmp_path / 'work' / 'iter_2.pth')['state_dict']
    if method == 'mcibi':
        assert state['decode_head.bank.filled'].all()
        bank, start = state['decode_head.bank.features'][:, None], memory.centers
    else:
        bank = state['decode_head.bank.distributions']
        start = torch.nn.functional.normalize(memory.centers, dim=-1)
        # momentum 0.999 moves a row by a thousandth of its length in an iteration
        assert (bank - start).norm(dim=-1).max() < 5e-3
    cosines = torch.cosine_similarity(bank, start, dim=-1)
    assert cosines.min() > 0.99
    assert (cosines < 1 - 1e-7).any()  # and it has been updated
    records = [record for record in scalars(tmp_path / 'work') if 'loss' in record]
    assert all(np.isfinite(record['loss']) for record in records)
