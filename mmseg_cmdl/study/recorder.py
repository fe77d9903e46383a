"""What a job of a study leaves: one small JSON file.

Registered for the jobs by `custom_imports`; the study adds both to each arm's config.
"""

import base64
import json
import math
import os
import platform
import subprocess
import sys
import time
import zlib
from itertools import chain, repeat
from pathlib import Path
from statistics import median
from typing import Any, Dict, Iterator, List, Optional, Sequence

import mmcv
import mmengine
import mmseg
import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.evaluation import IoUMetric
from torch import Tensor

from ..errors import InputError
from ..registry import HOOKS, METRICS
from ..utils import unwrapped
from ..version import __version__
from .plan import write_json

try:
    import fcntl
    import resource
except ImportError:  # Windows: no lock, and neither CPU time nor memory
    fcntl = resource = None

#: Environment variable with the id of the process that runs the jobs. Jobs end when it is gone.
PARENT = 'MMSEG_CMDL_STUDY_PID'
#: Largest number of per-image areas in a result, about 60 KB.
MAX_AREAS = 24_000


def scores(areas: np.ndarray) -> Dict[str, np.ndarray]:
    """Scores in percent from areas in pixels.

    Args:
        areas (np.ndarray): [..., 3, K]: intersection, prediction, label of each class.

    Returns:
        dict: `IoU` and `Acc` [..., K], NaN for a class that is nowhere; their means `mIoU` and
        `mAcc`, and `aAcc`, [...]. As MMSegmentation's IoUMetric, not rounded.
    """
    inside, predicted, labelled = np.moveaxis(np.asarray(areas, float), -2, 0)
    with np.errstate(divide='ignore', invalid='ignore'):
        iou = 100 * inside / (predicted + labelled - inside)
        acc = 100 * inside / labelled
        overall = 100 * inside.sum(-1) / labelled.sum(-1)

    def mean(values: np.ndarray) -> np.ndarray:
        known = ~np.isnan(values)
        with np.errstate(divide='ignore', invalid='ignore'):
            return np.where(known, values, 0).sum(-1) / known.sum(-1)

    return dict(IoU=iou, Acc=acc, mIoU=mean(iou), mAcc=mean(acc), aAcc=overall)


def pack_areas(areas: np.ndarray) -> dict:
    """Areas [images, 3, K] as text; runs of images are summed where there are too many numbers."""
    images = len(areas)
    room = max(1, MAX_AREAS // areas[0].size)
    per_unit = -(-images // room)
    starts = np.arange(0, images, per_unit)
    units = np.add.reduceat(areas, starts, axis=0).astype('<i4')
    packed = base64.b64encode(zlib.compress(units.tobytes(), 9)).decode()
    return dict(
        images=images, images_per_unit=per_unit, shape=list(units.shape), zlib_int32_base64=packed
    )


def unpack_areas(packed: dict) -> np.ndarray:
    """What :func:`pack_areas` was given, int64 [units, 3, K]."""
    raw = zlib.decompress(base64.b64decode(packed['zlib_int32_base64']))
    return np.frombuffer(raw, '<i4').reshape(packed['shape']).astype(np.int64)


@METRICS.register_module()
class StudyMetric(BaseMetric):
    """IoU, class accuracy and accuracy, and the areas of each image, from which they follow.

    Args:
        ignore_index (int): Label that isn't scored. Defaults to 255.
    """

    default_prefix = 'study'

    def __init__(self, ignore_index: int = 255, **kwargs: Any):
        super().__init__(**kwargs)
        self.ignore_index = ignore_index
        self.areas: Optional[np.ndarray] = None

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """See the base class."""
        num_classes = len(self.dataset_meta['classes'])
        for sample in data_samples:
            prediction = sample['pred_sem_seg']['data'].squeeze()
            label = sample['gt_sem_seg']['data'].squeeze().to(prediction)
            inside, _, predicted, labelled = IoUMetric.intersect_and_union(
                prediction, label, num_classes, self.ignore_index
            )
            self.results.append(torch.stack([inside, predicted, labelled]).long())

    def compute_metrics(self, results: List[torch.Tensor]) -> Dict[str, float]:
        """See the base class; in percent."""
        self.areas = torch.stack(results).numpy()
        found = scores(self.areas.sum(axis=0))
        return {key: float(found[key]) for key in ('mIoU', 'mAcc', 'aAcc')}


@HOOKS.register_module()
class StudyRecorder(Hook):
    """Writes `results/ARM_seedN.json` when the job has ended, with what the report needs.

    The last validation is always after the last iteration; where the loop has left it out, or the
    job was stopped between the two, it is made up for.

    Args:
        arm (str): Name of the arm.
        results (str): Folder of the result files.
        fingerprint (str): Fingerprint of the arm's config, see :mod:`~mmseg_cmdl.study.plan`.
        precise_bn (int): Before the last validation, the statistics of all batch norms are taken
            anew from so many batches of the training set. The result also has the scores without
            that. 0 leaves them as trained. Defaults to 0.
    """

    # after what logs and saves
    priority = 'LOWEST'

    def __init__(self, arm: str, results: str, fingerprint: str, precise_bn: int = 0):
        self.arm, self.results, self.fingerprint = arm, Path(results), fingerprint
        self.precise_bn = precise_bn
        self._parent = os.environ.get(PARENT)
        self._start = time.time()
        self._before = dict(seconds=0.0, cpu_seconds=0.0, stops=0)
        self._first_not_finite: Optional[int] = None
        self._validations: List[list] = []
        self._last_validation = -1
        self._cpu_times: List[float] = []  # of each iteration, all threads
        self._gpu_memory: List[int] = []  # after each iteration, peak since mmengine's last log

    def before_run(self, runner: Runner) -> None:
        """Claims the folder.

        Raises:
            InputError: Another process runs this job.
        """
        if is_main_process() and not lock(Path(runner.work_dir)):
            raise InputError(f'another process runs the job in {runner.work_dir}')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Adds the records so far to the checkpoint, for a job that resumes from it."""
        checkpoint['study'] = self._so_far()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Reads the records from a checkpoint."""
        if runner._resume:
            before = checkpoint.get('study')
            if before is not None:
                self._validations = before.pop('validations')
                self._before = {**before, 'stops': before['stops'] + 1}
                self._first_not_finite = before['first_not_finite']

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Starts the clock."""
        self._cpu_times.append(time.process_time())

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Optional[dict] = None
    ) -> None:
        """Records the first iteration in which a loss is not finite, and the GPU's peak memory.

        Raises:
            InputError: The study that started this job has ended.
        """
        self._cpu_times[-1] = time.process_time() - self._cpu_times[-1]
        if torch.cuda.is_available():
            self._gpu_memory.append(torch.cuda.max_memory_allocated())
        if self._first_not_finite is None and outputs is not None:
            values = [v for key, v in outputs.items() if 'loss' in key]
            if not all(math.isfinite(v) for v in values):
                self._first_not_finite = runner.iter
        if self._parent is not None and str(os.getppid()) != self._parent:
            raise InputError('the study that started this job is gone')

    def after_val_epoch(self, runner: Runner, metrics: Optional[Dict[str, float]] = None) -> None:
        """Keeps the point of the learning curve."""
        if metrics is None or not runner.train_loop:
            return
        self._last_validation = runner.iter
        point = [runner.iter, *(rounded(metrics[f'study/{k}']) for k in ('mIoU', 'mAcc', 'aAcc'))]
        self._validations = [p for p in self._validations if p[0] < runner.iter] + [point]

    def after_train(self, runner: Runner) -> None:
        """Writes the result."""
        if self._last_validation != runner.iter:
            runner.val_loop.run()
        as_trained = self._scores(runner)
        if self.precise_bn:
            self._take_statistics_anew(runner)
            runner.val_loop.run()
        if not is_main_process():
            return
        model = unwrapped(runner.model)
        found, so_far = self._scores(runner), self._so_far()
        metric = _study_metric(runner)
        out = dict(
            format=1,
            arm=self.arm,
            seed=runner.seed,
            state='finished',
            config=self.fingerprint,
            iterations=runner.iter,
            **{key: found[key] for key in ('mIoU', 'mAcc', 'aAcc')},
            **({'as_trained': as_trained} if self.precise_bn else {}),
            first_not_finite=so_far['first_not_finite'],
            classes=list(metric.dataset_meta['classes']),
            IoU=found['IoU'],
            Acc=found['Acc'],
            validations=so_far['validations'],
            loss=_loss_curve(runner),
            parameters=sum(p.numel() for p in model.parameters()),
            **{key: so_far[key] for key in ('seconds', 'cpu_seconds', 'stops')},
            iteration_cpu_seconds=round(median(self._cpu_times), 5) if self._cpu_times else None,
            **_machine(runner, self._gpu_memory),
            commit=_commit(),
            areas=pack_areas(metric.areas),
        )
        write_json(result_path(self.results, self.arm, runner.seed), out)

    def _so_far(self) -> dict:
        cpu = 0.0
        if resource is not None:
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
                cpu += resource.getrusage(who).ru_utime
        return dict(
            seconds=round(self._before['seconds'] + time.time() - self._start, 1),
            cpu_seconds=round(self._before['cpu_seconds'] + cpu, 1),
            stops=self._before['stops'],
            first_not_finite=self._first_not_finite,
            validations=[list(point) for point in self._validations],
        )

    @staticmethod
    def _scores(runner: Runner) -> dict:
        return rounded(scores(_study_metric(runner).areas.sum(axis=0)))

    def _take_statistics_anew(self, runner: Runner) -> None:
        """Batch norm statistics as plain means over training batches, all with the same weights."""
        model = unwrapped(runner.model)

        # loops that count in iterations have an iterator; a second one over the same loader would
        # end mmengine's InfiniteSampler, where workers are persistent
        loop = runner.train_loop
        batches = getattr(loop, 'dataloader_iterator', None)
        if batches is None:
            batches = chain.from_iterable(repeat(loop.dataloader))

        def inputs() -> Iterator[Tensor]:
            for _ in range(self.precise_bn):
                yield model.data_preprocessor(next(batches), True)['inputs']

        with torch.no_grad():
            # mode 'tensor': no loss is taken, so no memory is updated
            torch.optim.swa_utils.update_bn(inputs(), model)


def _study_metric(runner: Runner) -> StudyMetric:
    return next(m for m in runner.val_evaluator.metrics if isinstance(m, StudyMetric))


def rounded(value: Any) -> Any:
    """Floats with 4 decimals, at any depth; None for NaN and infinity, which JSON has not."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value


def _loss_curve(runner: Runner, points: int = 25) -> List[list]:
    """[iteration, mean loss since the point before]."""
    history = runner.message_hub.log_scalars.get('train/loss')
    if history is None:
        return []
    values = np.asarray(history.data[0], float)
    parts = np.array_split(np.arange(len(values)), min(points, len(values)))
    return [[int(part[-1]) + 1, rounded(values[part].mean())] for part in parts]


def _machine(runner: Runner, gpu_memory: Sequence[int]) -> dict:
    """What a job took, and on what."""
    times = runner.message_hub.log_scalars.get('train/time')
    on_gpu = torch.cuda.is_available() and next(runner.model.parameters()).is_cuda
    peak: Optional[float] = None
    if resource is not None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak = round(peak / (2**20 if sys.platform == 'darwin' else 2**10), 1)
    return dict(
        iteration_seconds=None if times is None else round(median(times.data[0].tolist()), 5),
        peak_mib=peak,
        # not the largest: in the first steps cuDNN tries all that it has
        peak_gpu_mib=round(median(gpu_memory) / 2**20, 1) if on_gpu and gpu_memory else None,
        device=torch.cuda.get_device_name() if on_gpu else cpu_name(),
        threads=torch.get_num_threads(),
        versions=dict(
            python=platform.python_version(),
            torch=torch.__version__,
            mmengine=mmengine.__version__,
            mmcv=mmcv.__version__,
            mmseg=mmseg.__version__,
            mmseg_cmdl=__version__,
            numpy=np.__version__,
        ),
    )


def cpu_name() -> str:
    """Of this machine, with its number of cores."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return f'{names[0] if names else platform.machine()}, {os.cpu_count()} cores'


def _commit() -> Optional[str]:
    """Of the checkout that this package is in, with '+' where files differ from it."""

    def git(*words: str) -> Optional[str]:
        here = Path(__file__).parent
        out = subprocess.run(['git', '-C', here, *words], capture_output=True, text=True)
        return out.stdout.strip() if out.returncode == 0 else None

    try:
        commit = git('rev-parse', '--short=10', 'HEAD')
        return commit and commit + '+' * bool(git('status', '--porcelain', '-uno'))
    except OSError:
        return None


def result_path(results: Path, arm: str, seed: int) -> Path:
    """Where the result of a job is."""
    return Path(results) / f'{arm}_seed{seed}.json'


def read_result(path: Path) -> dict:
    """A result file.

    Raises:
        ValueError: It isn't one.
    """
    try:
        out = json.loads(Path(path).read_text(encoding='utf-8'))
        if out['format'] != 1:
            raise KeyError('format 1')
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path} is no result of a study ({error}); remove it') from error
    return out


_locks: Dict[Path, Any] = {}


def lock(folder: Path) -> bool:
    """Claims a job's folder for this process until it ends; whether nobody else has it."""
    if fcntl is None or folder in _locks:
        return True
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / 'lock', 'w')  # noqa: SIM115  open as long as the process lives
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return False
    _locks[folder] = file
    return True


def is_locked(folder: Path) -> bool:
    """Whether a process has claimed a job's folder."""
    if fcntl is None or not (folder / 'lock').is_file():
        return False
    with open(folder / 'lock', 'r+') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
