"""Runs the jobs of a study side by side; what is done already isn't done again."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Dict, List, NamedTuple, Optional, Sequence

from .plan import Arm, StudyError, write_json
from .recorder import PARENT, is_locked, read_result, result_path

# a terminal's line, from its beginning
_ERASE = '\r\x1b[K'
_ITERATION = re.compile(rb'Iter\(train\)\s*\[\s*(\d+)/(\d+)\]|Epoch\(train\)\s*\[(\d+)\]')


class Job(NamedTuple):
    """One arm with one seed."""

    arm: str
    seed: int
    fingerprint: str
    study: Path

    @property
    def name(self) -> str:
        """As it is listed."""
        return f'{self.arm}, seed {self.seed}'

    @property
    def folder(self) -> Path:
        """Logs and checkpoints."""
        return self.study / 'jobs' / self.arm / f'seed{self.seed}'

    @property
    def result(self) -> Path:
        """What it leaves."""
        return result_path(self.study / 'results', self.arm, self.seed)

    def command(self, python: str, train: Path) -> List[str]:
        """What trains it, from where it was if it was stopped."""
        return [
            python,
            str(train),
            str(self.study / 'configs' / f'{self.arm}.py'),
            '--work-dir',
            str(self.folder),
            '--resume',
            'auto',
            '--cfg-options',
            f'randomness.seed={self.seed}',
        ]

    def state(self) -> str:
        """'done', 'failed', 'running', 'stopped' or 'new'.

        Raises:
            StudyError: There is a result of another config.
        """
        if self.result.is_file():
            found = read_result(self.result)
            if found['state'] == 'failed':
                return 'failed'
            if found['config'] != self.fingerprint:
                raise StudyError(
                    f'{self.result} is of another config than {self.arm} has now; remove it, or '
                    'take another --work-dir'
                )
            return 'done'
        if is_locked(self.folder):
            return 'running'
        return 'stopped' if (self.folder / 'last_checkpoint').is_file() else 'new'

    def progress(self) -> float:
        """Part of its iterations that are done, from its log."""
        log = self.folder / 'job.log'
        if not log.is_file():
            return 0.0
        with open(log, 'rb') as file:
            file.seek(max(0, log.stat().st_size - 20_000))
            found = [m for m in _ITERATION.finditer(file.read()) if m.group(2)]
        return int(found[-1].group(1)) / int(found[-1].group(2)) if found else 0.0


def jobs_of(arms: Sequence[Arm], seeds: Sequence[int], study: Path) -> List[Job]:
    """All arms with the first seed, then all with the second: balanced wherever it is stopped."""
    return [Job(arm.name, seed, arm.fingerprint, Path(study)) for seed in seeds for arm in arms]


def describe(seconds: float) -> str:
    """'2 h 05 min'."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f'{seconds:.0f} s'
    return f'{minutes} min' if minutes < 60 else f'{minutes // 60} h {minutes % 60:02d} min'


def expected_seconds(jobs: Sequence[Job]) -> Dict[str, Optional[float]]:
    """Of a whole job of each arm, from those that are done: of the arm itself, or of any arm."""
    took: Dict[str, List[float]] = {}
    for job in jobs:
        if job.result.is_file():
            found = read_result(job.result)
            if found['state'] != 'failed':
                took.setdefault(job.arm, []).append(found['seconds'])
    of_arm = {arm: mean(values) for arm, values in took.items()}
    overall = mean(of_arm.values()) if of_arm else None
    return {job.arm: of_arm.get(job.arm, overall) for job in jobs}


def measure(arm: Arm, train: Path, iterations: int = 4) -> float:
    """Seconds of a whole job, from a few iterations and a validation in a folder that goes again.

    Raises:
        StudyError: The config counts in epochs, or the short job failed; with its last line.
    """
    total = arm.config.train_cfg.get('max_iters')
    if not total:
        raise StudyError('the config counts in epochs')
    interval = arm.config.train_cfg.get('val_interval', 1000)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(arm.name, 0, arm.fingerprint, Path(folder))
        (job.study / 'configs').mkdir()
        arm.config.dump(str(job.study / 'configs' / f'{arm.name}.py'))
        short = [f'train_cfg.{key}={iterations}' for key in ('max_iters', 'val_interval')]
        place = len(arm.config.custom_hooks) - 1  # the recorder is the last
        short.append(f'custom_hooks.{place}.results={job.study / "results"}')
        out = subprocess.run(
            [*job.command(sys.executable, train), *short],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
            env=environment(0, 1),
        )
        if out.returncode or not job.result.is_file():
            lines = out.stdout.splitlines() or ['']
            raise StudyError(f'{arm.name} fails in its first iterations: {lines[-1][:300]}')
        found = read_result(job.result)
    once = max(0.0, found['seconds'] - iterations * found['iteration_seconds'])
    # start and validation together count as often as there are validations: rather too much
    return total * found['iteration_seconds'] + once * max(1, total // interval)


class Runner:
    """Runs jobs, so many at a time.

    Args:
        jobs (Sequence[Job]): In this order.
        train (Path): tools/train.py.
        slots (int): Jobs at a time.
        keep_checkpoints (bool): Whether the checkpoints of finished jobs stay. Defaults to False.
    """

    def __init__(
        self, jobs: Sequence[Job], train: Path, slots: int, keep_checkpoints: bool = False
    ):
        self.jobs, self.train, self.slots = list(jobs), train, slots
        self.keep_checkpoints = keep_checkpoints
        self._running: Dict[int, tuple] = {}  # slot: (job, process, start, part done at the start)
        self._shown = 0.0

    def run(self) -> List[Job]:
        """Runs what isn't done.

        Returns:
            list[Job]: Those that failed.
        """
        waiting = [job for job in self.jobs if job.state() != 'done']
        failed = []
        done = len(self.jobs) - len(waiting)
        self._say(f'{len(self.jobs)} jobs, {done} of them done already, {self.slots} at a time')
        try:
            while waiting or self._running:
                for slot in range(self.slots):
                    if slot in self._running:
                        continue
                    # one that another process runs is left to it, and looked at again
                    job = next((job for job in waiting if not is_locked(job.folder)), None)
                    if job is None:
                        break
                    waiting.remove(job)
                    if job.state() != 'done':
                        self._start(slot, job)
                time.sleep(0.2)
                for slot, (job, process, *_) in list(self._running.items()):
                    if process.poll() is not None:
                        del self._running[slot]
                        if not self._finish(job, process.returncode):
                            failed.append(job)
                waiting = [
                    job for job in waiting if not job.result.is_file() or job.state() != 'done'
                ]
                self._show(waiting, failed)
        except BaseException:  # Ctrl-C and SIGTERM too: nothing must go on in the background
            self._stop()
            raise
        return failed

    def _start(self, slot: int, job: Job) -> None:
        job.folder.mkdir(parents=True, exist_ok=True)
        job.result.unlink(missing_ok=True)  # of a failure
        with open(job.folder / 'job.log', 'ab') as log:
            process = subprocess.Popen(
                job.command(sys.executable, self.train),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment(slot, self.slots),
                start_new_session=True,  # Ctrl-C is ours to hand on
            )
        self._running[slot] = (job, process, time.time(), job.progress())

    def _finish(self, job: Job, code: int) -> bool:
        """Says what came of a job; whether it left a result."""
        if job.result.is_file() and job.state() == 'done':
            found = read_result(job.result)
            if not self.keep_checkpoints:
                for path in [*job.folder.glob('*.pth'), job.folder / 'last_checkpoint']:
                    path.unlink(missing_ok=True)
            miou = 'not finite' if found['mIoU'] is None else f'mIoU {found["mIoU"]:.2f}'
            self._say(f'{job.name}: {miou}, {describe(found["seconds"])}')
            return True
        lines = (job.folder / 'job.log').read_text(errors='replace').splitlines()[-12:]
        how = f'signal {-code}' if code < 0 else f'exit code {code}'
        self._say(f'{job.name}: FAILED with {how}; its last lines, of {job.folder / "job.log"}:')
        self._say('\n'.join(f'    {line}' for line in lines))
        write_json(
            job.result,
            dict(
                format=1,
                arm=job.arm,
                seed=job.seed,
                state='failed',
                config=job.fingerprint,
                how=how,
                error=lines[-1][:300] if lines else '',
            ),
        )
        return False

    def _stop(self) -> None:
        for _, process, *_ in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for _, process, *_ in self._running.values():
            process.wait()

    def _left(self, waiting: Sequence[Job]) -> Optional[float]:
        """Seconds until all is done, if that can be told."""
        parts = [(job, 1.0) for job in waiting]
        guesses = []
        for job, _, start, before in self._running.values():
            done = job.progress()
            parts.append((job, 1 - done))
            if done - before > 0.02:
                guesses.append((time.time() - start) / (done - before))
        usual = mean(guesses) if guesses else None
        whole = {arm: found or usual for arm, found in expected_seconds(self.jobs).items()}
        if None in whole.values():
            return None
        return sum(part * whole[job.arm] for job, part in parts) / self.slots

    def _show(self, waiting: Sequence[Job], failed: Sequence[Job]) -> None:
        terminal = sys.stdout.isatty()
        if time.time() - self._shown < (2 if terminal else 120):
            return
        self._shown = time.time()
        done = len(self.jobs) - len(waiting) - len(self._running) - len(failed)
        left = self._left(waiting)
        parts = [f'{done}/{len(self.jobs)} done']
        parts += [f'{len(failed)} failed'] * bool(failed)
        parts += [f'{job.name} {job.progress():.0%}' for job, *_ in self._running.values()]
        parts += ['unknown time left' if left is None else f'about {describe(left)} left']
        line = '; '.join(parts)
        if terminal:
            line = line[: shutil.get_terminal_size().columns - 1]
            print(f'{_ERASE}{line}', end='', flush=True)
        else:
            self._say(line)

    @staticmethod
    def _say(text: str) -> None:
        print(f'{_ERASE * sys.stdout.isatty()}{text}', flush=True)


def environment(slot: int, slots: int) -> Dict[str, str]:
    """Of a job: its share of the cores, one GPU, and who waits for it."""
    out = {**os.environ, PARENT: str(os.getpid())}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    out.setdefault('OMP_NUM_THREADS', str(max(1, (cores or 1) // slots)))
    import torch

    gpus = torch.cuda.device_count()
    if gpus > 1:
        named = os.environ.get('CUDA_VISIBLE_DEVICES')
        names = named.split(',') if named else [str(i) for i in range(gpus)]
        out['CUDA_VISIBLE_DEVICES'] = names[slot % gpus]
    return out


def command_lines(jobs: Sequence[Job], train: Path, python: str = 'python') -> List[str]:
    """A shell command for each job that isn't done."""
    return [
        shlex.join(job.command(python, train))
        for job in jobs
        if job.state() not in ('done', 'running')
    ]


def slurm_script(lines: Sequence[str], study: Path, partition: str, at_a_time: int) -> str:
    """A batch script that runs each line as a task of an array."""
    name = shlex.quote(str(study / 'commands.txt'))
    return f"""#!/usr/bin/env bash
#SBATCH --partition={partition}
#SBATCH --job-name=study
#SBATCH --array=1-{len(lines)}%{at_a_time}
#SBATCH --output={study}/slurm-%A_%a.log
exec bash -c "$(sed -n "${{SLURM_ARRAY_TASK_ID}}p" {name})"
"""
