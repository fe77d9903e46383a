"""The main job through the doors that users have, on real images where they are there.

CamVid: trained by `mim train`, stopped, resumed, tested by `mim test`, predicted by
MMSegInferencer. This config and that of the synthetic scenes: also through MMSegmentation's own
tools/train.py.
"""

import json
import sys
from pathlib import Path

import mmseg
import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from tests.doors import config, run, scalars, through_mim
from tests.paths import TOOLS

CAMVID = 'mdrl/mdrl_fcn_r18s-d8_1xb8-200it_camvid-180x240.py'
SCENES = 'mdrl/mdrl_fcn_r18s-d8_1xb8-demo_synthetic-128x128.py'
NUM_CLASSES = 11
BANK = 'decode_head.bank.distributions'
SPLITS = ('train', 'val', 'test')
# options of a job of a few iterations, which would wait longer for workers than train
NO_WORKERS = [
    f'{split}_dataloader.{option}'
    for split in SPLITS
    for option in ('num_workers=0', 'persistent_workers=False')
]


def roots(folder, splits=SPLITS):
    """Options that name the folder of the images."""
    return [f'{split}_dataloader.dataset.data_root={folder}' for split in splits]


def confusion(label, prediction):
    """Naive confusion matrix [label, prediction] of one image; void doesn't count."""
    matrix = np.zeros((NUM_CLASSES, NUM_CLASSES), np.int64)
    known = label < NUM_CLASSES
    np.add.at(matrix, (label[known], prediction[known]), 1)
    return matrix


def scores(matrix):
    """(mIoU, aAcc) in percent, by their definitions."""
    hits = np.diag(matrix)
    unions = matrix.sum(0) + matrix.sum(1) - hits
    return 100 * (hits / unions).mean(), 100 * hits.sum() / matrix.sum()


@pytest.fixture(scope='module')
def camvid_job(camvid_root, tmp_path_factory):
    """Work dir of 200 iterations in two halves: `mim train`, then `mim train ... --resume`."""
    folder = tmp_path_factory.mktemp('camvid_job')
    options = [config(CAMVID), '--work-dir', 'work', '--cfg-options', 'randomness.seed=0']
    # half the config's batch, and half the time
    options += [*roots(camvid_root), 'train_dataloader.batch_size=4']
    # the schedule is that of 200 iterations either way
    through_mim('train', *options, 'train_cfg.max_iters=100', folder=folder)
    assert [file.name for file in sorted(folder.glob('work/iter_*.pth'))] == ['iter_100.pth']
    through_mim('train', options[0], '--resume', *options[1:], folder=folder)
    return folder / 'work'


@pytest.fixture(scope='module')
def camvid_masks(camvid_job, camvid_root):
    """(metrics, folder of masks) that test.py gives on val."""
    through_mim(
        'test', config(CAMVID), '--checkpoint', camvid_job / 'iter_200.pth',
        '--work-dir', 'test', '--out', 'masks', '--cfg-options', *roots(camvid_root, ['test']),
        'test_dataloader.dataset.data_prefix.img_path=images/val',
        'test_dataloader.dataset.data_prefix.seg_map_path=annotations/val',
        folder=camvid_job.parent,
    )  # fmt: skip
    (file,) = camvid_job.parent.glob('test/*/*.json')
    return json.loads(file.read_text()), camvid_job.parent / 'masks'


@pytest.mark.slow
def test_training_on_camvid_learns_and_resumes(camvid_job):
    records = [record for record in scalars(camvid_job) if 'loss' in record]
    assert [record['step'] for record in records] == list(range(10, 201, 10))
    losses = np.array([record['loss'] for record in records])
    assert np.isfinite(losses).all()
    assert losses[-5:].mean() < 0.75 * losses[:3].mean()
    # the resumed half goes on where the first one stopped
    assert losses[10:13].mean() < losses[7:10].mean() + 0.25
    # every part of the objective is there and the sum is theirs
    last = records[-1]
    parts = [value for key, value in last.items() if 'loss' in key and key != 'loss']
    assert len(parts) == 5
    assert sum(parts) == pytest.approx(last['loss'], abs=2e-3)
    assert last['decode.acc_distribution'] > 1.5 * records[0]['decode.acc_distribution']
    assert last['decode.stat_left_out_pixels'] == 0


@pytest.mark.slow
def test_bank_moves_through_both_halves_on_camvid(camvid_job):
    half, whole = (torch.load(camvid_job / f'iter_{i}.pth')['state_dict'] for i in (100, 200))
    for iteration, state in ((100, half), (200, whole)):
        assert state['decode_head.bank.num_updates'] == iteration
        lengths = state[BANK].norm(dim=-1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths), atol=1e-5, rtol=0)
    assert half[BANK].shape == (NUM_CLASSES, 9, 64)
    for before, after in ((camvid_start(camvid_job), half[BANK]), (half[BANK], whole[BANK])):
        moved = (before != after).any(-1)
        # Of a class of which few pixels were right, one distribution or all may stay where they
        # are, by how the processor rounds. Those of most of an image move.
        assert moved.float().mean() > 0.5
        assert moved[[0, 1, 3, 5]].any(dim=-1).all()
        # momentum 0.999: in 100 updates a row goes at most 1 - 0.999 ** 100 = 10 % of the way
        cosines = (before * after).sum(-1)[moved]
        assert 0.9 < cosines.min() < 0.999


def camvid_start(camvid_job):
    """The bank before training, from the seed that the job logged."""
    from mmengine.registry import DefaultScope
    from mmengine.runner import set_random_seed
    from mmseg.registry import MODELS

    cfg = Config.fromfile(camvid_job / Path(CAMVID).name)
    set_random_seed(cfg.randomness.seed)
    with DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build(cfg.model).decode_head.bank.distributions


@pytest.mark.slow
def test_camvid_scores_lie_far_above_the_majority_class(camvid_job, camvid_masks, camvid_root):
    metrics, masks = camvid_masks
    validated = [record for record in scalars(camvid_job) if 'mIoU' in record]
    assert [record['step'] for record in validated] == [100, 200]
    assert metrics['mIoU'] == pytest.approx(validated[-1]['mIoU'], abs=0.01)
    assert metrics['aAcc'] == pytest.approx(validated[-1]['aAcc'], abs=0.01)

    total = np.zeros((NUM_CLASSES, NUM_CLASSES), np.int64)
    files = sorted((camvid_root / 'annotations' / 'val').glob('*.png'))
    assert len(files) == 101
    for file in files:
        total += confusion(np.asarray(Image.open(file)), np.asarray(Image.open(masks / file.name)))
    miou, accuracy = scores(total)
    assert metrics['mIoU'] == pytest.approx(miou, abs=0.01)
    assert metrics['aAcc'] == pytest.approx(accuracy, abs=0.01)

    majority = np.zeros_like(total)
    majority[:, total.sum(1).argmax()] = total.sum(1)
    baseline_miou, baseline_accuracy = scores(majority)
    assert baseline_miou < 3
    assert miou > 4 * baseline_miou
    assert accuracy > baseline_accuracy + 15


@pytest.mark.slow
def test_inferencer_gives_the_camvid_masks_of_the_test_tool(camvid_job, camvid_masks, camvid_root):
    # in a process of its own, as a user has it: one import, then MMSegmentation's class
    code = """
import sys
from pathlib import Path
import mmseg_cmdl
import numpy as np
from mmseg.apis import MMSegInferencer
config, checkpoint, images, out = sys.argv[1:]
inferencer = MMSegInferencer(model=config, weights=checkpoint, device='cpu')
names = sorted(path.name for path in Path(images).iterdir())
for name in names:
    result = inferencer(f'{images}/{name}', show=False)
    np.save(f'{out}/{Path(name).stem}.npy', result['predictions'].astype(np.uint8))
"""
    folder = camvid_job.parent / 'inferred'
    folder.mkdir()
    run(
        [sys.executable, '-c', code, config(CAMVID), camvid_job / 'iter_200.pth',
         camvid_root / 'images' / 'val', folder],
        camvid_job.parent,
    )  # fmt: skip
    masks = sorted(camvid_masks[1].glob('*.png'))
    assert len(masks) == 101
    for mask in masks:
        inferred = np.load(folder / f'{mask.stem}.npy')
        assert inferred.shape == (360, 480)
        np.testing.assert_array_equal(inferred, np.asarray(Image.open(mask)), mask.name)


@pytest.mark.parametrize(
    'name',
    [SCENES, pytest.param(CAMVID, marks=pytest.mark.slow)],
    ids=['scenes', 'camvid'],
)
def test_mmsegmentations_own_train_tool_does_the_same(name, tmp_path, request):
    theirs = Path(mmseg.__file__).parent / '.mim' / 'tools' / 'train.py'
    if not theirs.is_file():
        pytest.skip('mmsegmentation is installed in editable mode, without .mim/tools')
    assert Config.fromfile(config(name)).custom_imports.imports == ['mmseg_cmdl']
    options = [
        'randomness.seed=0', 'train_cfg.max_iters=4', 'train_cfg.val_interval=4',
        'default_hooks.checkpoint.interval=4', 'default_hooks.logger.interval=1',
        'train_dataloader.batch_size=2', *NO_WORKERS,
    ]  # fmt: skip
    if name == CAMVID:
        options += roots(request.getfixturevalue('camvid_root'), ['train', 'val'])
        options += ['val_dataloader.dataset.indices=4']
    else:
        options += ['val_dataloader.dataset.length=4']
    states, records = [], []
    for work_dir, tool in (('theirs', theirs), ('ours', TOOLS / 'train.py')):
        run([sys.executable, tool, config(name), '--work-dir', work_dir, '--cfg-options', *options],
            tmp_path)  # fmt: skip
        states.append(torch.load(tmp_path / work_dir / 'iter_4.pth')['state_dict'])
        records.append([
            {key: value for key, value in record.items() if key not in ('time', 'data_time')}
            for record in scalars(tmp_path / work_dir)
        ])  # fmt: skip
    assert records[0] == records[1]
    assert [record['step'] for record in records[0]] == [1, 2, 3, 4, 4]
    assert states[0].keys() == states[1].keys()
    assert BANK in states[0]
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], rtol=0, atol=0, msg=key)
    assert states[0]['decode_head.bank.num_updates'] == 4
