"""The recorder ends jobs that must not go on, as an error that callers can catch."""

from types import SimpleNamespace

import pytest

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
