"""What only a CUDA device can show; everything here is skipped where PyTorch sees none.

Several ranks on one device: test_gpu_count.py; autocast: test_precision.py.
"""

import copy
import os
import subprocess
import sys
import traceback
import warnings
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from tests import tiny
from tests.guarantees import cases, jobs
from tests.guarantees.cases import assert_same, everything
from tests.paths import TOOLS, launcher_environment, python

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
# what cuBLAS needs for equal sums in every run, read when it is first used
os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')

# `assignment='gumbel'` draws its noise on the device
DRAWN = [name for name in cases.CASES if 'gumbel' in name]
SAME = [name for name in cases.CASES if name not in DRAWN]


def train(model, steps, lr=0.05):
    """Losses of some steps of SGD; gradients of the last one are left."""
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9), []
    for seed in range(steps):
        optimizer.zero_grad()
        losses.append(cases.step(model, seed)[0])
        if seed < steps - 1:
            optimizer.step()
    return losses


@pytest.mark.parametrize('norm', ['BN', 'GN'])
@pytest.mark.parametrize('name', SAME)
def test_a_training_is_that_of_a_cpu(name, norm):
    """Four steps in float64: losses, gradients, weights and banks; and a prediction."""
    model = cases.build(name, dtype=torch.float64, norm=norm)
    twin = copy.deepcopy(model).cuda()
    expected, got = (everything(x, train(x, 4)) for x in (model, twin))
    assert_same(got, expected, rtol=1e-8, atol=1e-9)
    images, _ = cases.batch(9, dtype=torch.float64)
    with torch.no_grad():
        expected = model.eval()(images)
        got = twin.eval()(images.cuda()).cpu()
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)


def warned(run):
    """Text of each warning of `run`, and where Python was, outside PyTorch and this file."""
    found = []
    inner = (warnings.__file__, __file__, str(Path(torch.__file__).parent) + os.sep)

    def record(message, *args, **kwargs):
        frames = [x for x in traceback.extract_stack() if not any(y in x.filename for y in inner)]
        found.append((str(message), f'{frames[-1].filename}:{frames[-1].lineno}'))

    with warnings.catch_warnings():
        warnings.simplefilter('always')
        warnings.showwarning = record
        run()
    return found


def waits(run):
    """Where `run` made the host wait for the device."""
    torch.cuda.set_sync_debug_mode('warn')
    try:
        return [place for text, place in warned(run) if 'synchroniz' in text]
    finally:
        torch.cuda.set_sync_debug_mode('default')


def test_waiting_is_noticed():
    x = torch.ones(3, device='cuda')
    assert len(waits(lambda: x.sum().item())) == 1
    assert not waits(lambda: x.sum() + 1)


@pytest.mark.parametrize('name', cases.CASES)
def test_no_step_waits_for_the_device(name):
    """Neither a training step nor a prediction; MMSegmentation's accuracy and mmcv's criss-cross
    attention, which do, aside.
    """
    model = cases.build(name).cuda()
    train(model, 2)
    images, samples = cases.batch(5, device='cuda')
    losses = []
    found = waits(lambda: losses.append(model.loss(images, samples)))
    found += waits(lambda: cases.objective(losses[0]).backward())
    model.eval()
    with torch.no_grad():
        found += waits(lambda: model(images))
    host = [f'{os.sep}{file}.py:' for file in ('accuracy', 'cc_attention')]
    assert [x for x in found if not any(y in x for y in host)] == []


def undetermined(run):
    """Operations of `run` of which PyTorch says that their results may differ from run to run."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        return {text.split()[0] for text, _ in warned(run) if 'deterministic' in text}
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize('name', cases.CASES)
def test_deterministic_algorithms(name):
    """With them, two trainings are equal bit for bit, and all is used that they have a form of, but
    for the pooling in PSPHead.
    """
    plain = [cases.build(head=dict(x, channels=8)).cuda() for x in (cases.FCN, cases.PSP)]
    host = undetermined(lambda: [train(x, 2) for x in plain])
    results = []

    def run():
        model = cases.build(name).cuda()
        torch.manual_seed(0)
        results.append(everything(model, train(model, 3)))

    assert undetermined(run) <= host
    undetermined(run)
    first, second = results
    assert_same(second, first)


@pytest.mark.slow
@pytest.mark.parametrize('name', cases.shared(['mdrl', 'car'], cases.METHODS))
def test_compiled_for_the_device(name):
    """torch.compile with generated code: losses, gradients and banks of three steps."""
    plain = cases.build(name, norm='GN').cuda()
    model = copy.deepcopy(plain)
    compiled = torch.compile(model)
    for seed in range(3):
        images, samples = cases.batch(seed, device='cuda')
        model.zero_grad()
        losses = compiled(images, samples, mode='loss')
        cases.objective(losses).backward()
        plain.zero_grad()
        expected = everything(plain, [cases.step(plain, seed)[0]])
        assert_same(everything(model, [losses]), expected, rtol=1e-3, atol=1e-4)
    torch._dynamo.reset()


WRONG_LABEL = """
from tests.guarantees import cases
model = cases.build({name!r}).cuda()
images, samples = cases.batch(device='cuda')
samples[1].gt_sem_seg.data[0, 3, 4] = 77
losses = model.loss(images, samples)
cases.objective(losses).backward()
print('got', [float(x) for x in losses.values()])
"""


@pytest.mark.parametrize('name', cases.METHODS)
def test_a_wrong_label_stops_the_job_with_a_sentence(name):
    """On a device the check waits for nothing, so the sentence is what the device prints."""
    run = python('-c', WRONG_LABEL.format(name=name), first_on_path=sys.path)
    assert run.returncode != 0
    assert 'num_classes=5' in run.stderr, run.stderr[-3000:]
    assert 'got' not in run.stdout


@pytest.mark.slow
@pytest.mark.parametrize('norm', ['BN', 'SyncBN'])
def test_dist_train_on_nccl(norm, tiny_data, tmp_path):
    """`dist_train.sh CONFIG 1` with NCCL and DDP trains as `tools/train.py` does, to 1e-4."""
    environment = launcher_environment()
    base = tiny.write_config(tmp_path / 'tiny.py', tiny_data)
    config = jobs.write_config(tmp_path / 'job.py', base, 'mdrl', 4, 4, dropout=0.0, norm=norm)
    cfg = Config.fromfile(config)
    cfg.env_cfg = dict(dist_cfg=dict(backend='nccl'))
    cfg.randomness = dict(seed=0)
    jobs.dump(cfg, tmp_path / 'job.py')
    saved = []
    for command in (
        [sys.executable, str(TOOLS / 'train.py'), 'job.py'],
        ['bash', str(TOOLS / 'dist_train.sh'), 'job.py', '1'],
    ):
        work = f'work{len(saved)}'
        done = subprocess.run(
            [*command, '--work-dir', work], cwd=tmp_path, env=environment, text=True,
            capture_output=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        saved.append(torch.load(tmp_path / work / 'iter_4.pth', map_location='cpu'))
    one, two = (checkpoint['state_dict'] for checkpoint in saved)
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-4, msg=key)
