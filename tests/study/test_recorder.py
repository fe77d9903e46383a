"""The recorder: jobs that must not go on, and batch norm statistics taken anew."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch import nn
from torch.utils.data import DataLoader

from mmseg_cmdl.errors import InputError
from mmseg_cmdl.study import recorder


def hook(tmp_path):
    return recorder.StudyRecorder('arm', str(tmp_path), 'fingerprint')


def test_a_folder_that_another_process_works_in(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, 'lock', lambda folder: False)
    with pytest.raises(InputError, match=f'another process runs the job in {tmp_path}'):
        hook(tmp_path).before_run(SimpleNamespace(work_dir=str(tmp_path)))


def test_a_job_that_nobody_waits_for(tmp_path, monkeypatch):
    monkeypatch.setenv(recorder.PARENT, '-1')
    recording = hook(tmp_path)
    recording.before_train_iter(None, 0)
    with pytest.raises(InputError, match='the study that started this job is gone'):
        recording.after_train_iter(SimpleNamespace(iter=0), 0)


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.seen = []

    def data_preprocessor(self, batch, training):
        assert training
        return dict(inputs=batch)

    def forward(self, inputs):
        self.seen.append(inputs)
        return self.norm(inputs)


@pytest.mark.parametrize(('workers', 'by_epoch'), [(0, False), (1, False), (0, True), (1, True)])
def test_statistics_are_taken_anew_from_batches_of_any_loop(workers, by_epoch):
    """With persistent workers a second iterator ends InfiniteSampler: there was no batch."""
    data = [torch.randn(2) for _ in range(12)]
    loader = DataLoader(
        data, 4, num_workers=workers, persistent_workers=workers > 0,
        sampler=DefaultSampler(data) if by_epoch else InfiniteSampler(data),
    )  # fmt: skip
    loop = SimpleNamespace(dataloader=loader)
    if by_epoch:
        list(loader)
    else:
        loop.dataloader_iterator = _InfiniteDataloaderIterator(loader)
        next(loop.dataloader_iterator)
    model = Normed()
    recording = recorder.StudyRecorder('fcn', '.', '0', precise_bn=5)  # an epoch has 3 batches
    recording._take_statistics_anew(SimpleNamespace(model=model, train_loop=loop))
    assert len(model.seen) == 5
    expected = torch.stack([batch.mean(dim=0) for batch in model.seen]).mean(dim=0)
    torch.testing.assert_close(model.norm.running_mean, expected)


def test_gpu_memory_is_the_peak_of_a_training_step(tmp_path, monkeypatch):
    """mmengine's logger resets PyTorch's peak, so at the end it was that of the last validation."""
    peaks = iter([900, 70, 70, 71, 10])
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda: next(peaks) * 2**20)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'a GPU')
    recording = hook(tmp_path)
    recording._parent = None
    for i in range(5):
        recording.before_train_iter(None, i)
        recording.after_train_iter(SimpleNamespace(iter=i), i)
    runner = SimpleNamespace(
        message_hub=SimpleNamespace(log_scalars={}),
        model=SimpleNamespace(parameters=lambda: iter([SimpleNamespace(is_cuda=True)])),
    )
    machine = recorder._machine(runner, recording._gpu_memory)
    assert (machine['peak_gpu_mib'], machine['device']) == (70.0, 'a GPU')
