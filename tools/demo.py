"""Train FCN, MCIBI and MDRL to say which climate is where, and draw what came out.

Makes data/earth_climate from two packages on PyPI, trains through `mim train`, as a user would, as
many models at a time as there are cores, and ends in a table and a picture. The package must be
installed and not in editable mode. Needs no download and no GPU; two CPU cores take some minutes.

    python tools/demo.py                    # or: make demo
    python tools/demo.py --iters 2000 --seed 1 --work-dir work_dirs/longer-demo
"""

import argparse
import contextlib
import fcntl
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import mmseg_cmdl  # noqa: F401  before anything of mmseg

import numpy as np  # isort: skip
from PIL import Image  # isort: skip

from mmseg_cmdl.command_line import positive, seed, text_table, tool  # isort: skip
from mmseg_cmdl.errors import InputError  # isort: skip
from mmseg_cmdl.checkpoint_file import latest_checkpoint  # isort: skip
from mmseg_cmdl.launch import prepare_home  # isort: skip

# from the quickest to train to the slowest; the last one is drawn as distributions
CONFIGS = {
    'FCN': 'fcn_r18s-d8_1xb8-500it_earth-climate-128x128.py',
    'MCIBI': 'mcibi_fcn_r18s-d8_1xb8-500it_earth-climate-128x128.py',
    'MDRL': 'mdrl_fcn_r18s-d8_1xb8-500it_earth-climate-128x128.py',
}
METRICS = ('mIoU', 'mAcc', 'aAcc')
DATA = Path('data/earth_climate')  # as the configs have it
ITERATION = re.compile(r'Iter\(train\)\s*\[\s*(\d+)/(\d+)\].*?eta: (\S+).*? loss: (\S+)')
# A guard beside the command: ends all of its process group when the demo closes the pipe, which
# the system does too if the demo is killed.
GUARDED = 'exec 3<&0; (read _ <&3; kill 0) >/dev/null 2>&1 & exec "$@" 3<&- </dev/null'
PATCH = 56  # pixels of a side, 840 km at the equator
ONE_SEED = (
    'One seed: from seed to seed the scores of one model vary by some points, so that this table '
    'ranks nothing.\nNot shown here: high resolution, pretrained backbones and full schedules, '
    'which the methods were made for.'
)


class Progress:
    """One line of the terminal for jobs that run side by side."""

    def __init__(self):
        self._states, self._lock, self._width = {}, threading.Lock(), 0

    def show(self, label, state):
        with self._lock:
            self._states[label] = state
            self._print('\r', '; '.join(f'{name} {said}' for name, said in self._states.items()))

    def finish(self, label, seconds):
        with self._lock:
            self._states.pop(label, None)
            self._print('\r', f'{label}: done in {seconds:.0f} s')
            print()
            self._width = 0

    def _print(self, start, text):
        print(f'{start}  {text:{self._width}}', end='', flush=True)
        self._width = len(text)


class Jobs:
    """mim commands that run side by side; where one fails, the others are stopped."""

    def __init__(self):
        self.progress, self._running, self._stopped = Progress(), [], False

    def mim(self, *arguments, log, label):
        """Run a mim command; its output goes to `log`, its progress to the terminal."""
        # not `python -m mim`: that would put the working folder, often a checkout, before the
        # install
        command = [str(Path(sys.executable).with_name('mim')), *map(str, arguments)]
        # maps of 16x16: a second thread of PyTorch costs more than it brings
        environment = {'OMP_NUM_THREADS': '1', **os.environ}
        start, lines = time.time(), []
        if self._stopped:
            raise SystemExit('stopped')
        self.progress.show(label, 'starts')
        with (
            open(log, 'w', encoding='utf-8') as file,
            subprocess.Popen(
                ['sh', '-c', GUARDED, 'sh', *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding='utf-8',
                errors='replace',
                env=environment,
                start_new_session=True,  # mim starts Python, which starts its data workers
            ) as process,
        ):
            self._running.append(process)
            for line in process.stdout:
                file.write(line)
                lines.append(line)
                match = ITERATION.search(line)
                if match:
                    done, total, eta, loss = match.groups()
                    self.progress.show(label, f'{done}/{total}, loss {loss}, {eta} left')
            process.wait()
        self._running.remove(process)
        if process.returncode:
            if not self._stopped:
                sys.stderr.write('\n' + ''.join(lines[-25:]))
            self.stop()  # here, before this thread takes the next model
            raise SystemExit(f'error: "{" ".join(command)}" failed; the whole output is in {log}')
        self.progress.finish(label, time.time() - start)

    def stop(self):
        self._stopped = True
        for process in list(self._running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)


def run_side_by_side(function, names, at_a_time):
    """{name: function(name, jobs)}, each in a thread of its own; stops all where one fails."""
    jobs = Jobs()
    with ThreadPoolExecutor(at_a_time) as pool:
        futures = {name: pool.submit(function, name, jobs) for name in names}
        try:
            for future in as_completed(futures.values()):
                future.result()
        except BaseException:  # Ctrl-C too: nothing must go on in the background
            jobs.stop()
            pool.shutdown(cancel_futures=True)
            raise
    return {name: future.result() for name, future in futures.items()}


def cores():
    """Number of cores this process may use."""
    count = getattr(os, 'sched_getaffinity', lambda _: range(os.cpu_count() or 1))
    return len(count(0))


@contextlib.contextmanager
def only_one(folder):
    """No second demo in the same folder: each would remove what the other one writes."""
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(folder / '.lock', 'w'))
        except OSError as error:
            sys.exit(f"error: {folder} can't be written ({error}); pass another --work-dir")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f'error: a demo is running in {folder}; wait for it, or pass --work-dir')
        except OSError:  # a file system without locks
            pass
        yield


def load_converter():
    """The module tools/dataset_converters/earth_climate.py."""
    path = Path(__file__).parent / 'dataset_converters' / 'earth_climate.py'
    spec = importlib.util.spec_from_file_location('earth_climate', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def is_complete(folder, converter, picture, classes):
    """Whether the data set is what the converter writes, pixel by pixel."""
    for split, name, rows, columns in converter.images(classes):
        for kind, pixels in zip(converter.FOLDERS, (picture, classes)):
            try:
                with Image.open(folder / kind / split / f'{name}.png') as image:
                    if not np.array_equal(np.asarray(image), pixels[rows, columns]):
                        return False
            except (OSError, SyntaxError):
                return False
    return True


def prepare_data(converter, folder=DATA):
    """Picture and classes of the Earth; makes the data set if it isn't there as it must be.

    Raises:
        SystemExit: A package is missing; or files of someone else are in the folder.
    """
    try:
        picture, classes = converter.make_maps()
        if is_complete(folder, converter, picture, classes):
            print(f'{folder} is there')
            return picture, classes
        files = [p for kind in converter.FOLDERS for p in (folder / kind).rglob('*') if p.is_file()]
        strange = [p for p in files if not re.fullmatch(r'r\d{4}_c\d{4}\.png', p.name)]
        if strange:
            sys.exit(
                f"error: {folder} isn't as the demo needs it, and {strange[0]} is not of "
                'tools/dataset_converters/earth_climate.py; move the folder away'
            )
        print(f'{folder} is {"incomplete or damaged: made again" if files else "made"}')
        converter.convert(folder, overwrite=True)
        print(file=sys.stderr)
    except (InputError, OSError) as error:
        sys.exit(f'error: {error}')
    return picture, classes


def work_dir_of(folder, name):
    return folder / CONFIGS[name].split('_r18s')[0]


def train(name, jobs, folder, options):
    """Seconds of training of one model, validation included."""
    work_dir = work_dir_of(folder, name)
    work_dir.mkdir(parents=True)
    start = time.time()
    jobs.mim(
        'train',
        'mmseg_cmdl',
        CONFIGS[name],
        '--gpus',
        0,
        '--work-dir',
        work_dir,
        *options,
        log=work_dir / 'train.out',
        label=name,
    )
    return time.time() - start


def scores_of(work_dir):
    """{metric: percentage} of the validation at the end of the training.

    Raises:
        SystemExit: There was none.
    """
    for log in work_dir.glob('*/vis_data/scalars.json'):
        for line in reversed(log.read_text(encoding='utf-8').splitlines()):
            record = json.loads(line)
            if 'mIoU' in record:
                return {key: round(record[key], 2) for key in METRICS}
    sys.exit(f'error: no validation is logged in {work_dir}; see {work_dir / "train.out"}')


def place_of(row, column, converter):
    """'24°N 12°E' of a pixel of the maps."""
    north = 90 - (row + 0.5 + converter.ROWS[0]) * 180 / converter.SIZE[1]
    east = (column + 0.5) * 360 / converter.SIZE[0] - 180
    return (
        f'{abs(north):.0f}°{"S" if north < 0 else "N"} {abs(east):.0f}°{"W" if east < 0 else "E"}'
    )


def predict_strips(model, shape):
    """What the model says of the validation images, each in its place on the map [H, W]."""
    out = np.zeros(shape, np.uint8)
    for example in model.examples(predict=True):
        top, left = map(int, re.fullmatch(r'r(\d+)_c(\d+)', Path(example.path).stem).groups())
        rows, columns = example.prediction.shape
        out[top : top + rows, left : left + columns] = example.prediction
    return out


def map_distributions(model, picture, classes, converter):
    """Which distribution each pixel of the Earth belongs to, and the places nearest to each.

    Places are of pixels whose class is predicted as it is.
    """
    from mmseg_cmdl.analysis import command_line, main_distributions, nearest_places, see_whole
    from mmseg_cmdl.visualization import EarthMap, ShownDistribution

    whole = see_whole(
        model,
        picture,
        track=lambda items, n: command_line.progress(items, n, 'looking at the Earth'),
    )
    found = main_distributions(whole, model.bank('the map').read(), picture.mean(axis=2))
    half, stride, side = PATCH // 2, whole.stride, picture.shape[:2]
    predicted = whole.logits.argmax(dim=0).numpy()
    rows, columns = ((np.arange(n) * stride + stride // 2).clip(max=full - 1)
                     for n, full in zip(predicted.shape, side))  # fmt: skip
    # not at the border, where a patch would end
    inside = np.zeros(predicted.shape, bool)
    inside[half // stride + 1 : -half // stride - 1, half // stride + 1 : -half // stride - 1] = (
        True
    )
    right = (predicted == classes[rows[:, None], columns]) & inside
    shown = []
    for k, own in enumerate(found):
        shown.append([])
        for n, share in enumerate(own.shares):
            patches, places = [], []
            among = right & (predicted == k) & (own.own == n)
            for y, x in nearest_places(own.scores[n], among, 3, 2 * PATCH // stride):
                row, column = rows[y], columns[x]
                patches.append(picture[row - half : row + half, column - half : column + half])
                places.append(place_of(row, column, converter))
            shown[k].append(ShownDistribution(share, patches, places))
    labels = whole.enlarged(whole.logits).argmax(dim=0).numpy()
    large = np.zeros(side, np.uint8)
    for k, own in enumerate(found):
        large[labels == k] = own.large[labels == k]
    return EarthMap(labels, large, shown)


def draw(folder, picture, classes, converter, scores):
    """Writes demo.png; the last model has the distributions."""
    from mmseg_cmdl.analysis import ExaminedModel
    from mmseg_cmdl.visualization import draw_climate_poster, save_figure

    predictions = {}
    for name, found in scores.items():
        work_dir = work_dir_of(folder, name)
        checkpoint = latest_checkpoint(str(work_dir))
        model = ExaminedModel.load(work_dir / CONFIGS[name], checkpoint, name=name)
        predictions[name] = predict_strips(model, classes.shape), f'mIoU {found["mIoU"]:.1f}'
    iterations = re.search(r'iter_(\d+)', Path(checkpoint).name)[1]
    note = (
        "A small ResNet-18, trained from scratch on three quarters of the Earth's longitudes: "
        f'{iterations} iterations of 8 crops, one seed.'
    )
    earth = map_distributions(model, picture, classes, converter)
    figure = draw_climate_poster(
        picture, classes, predictions, earth, converter.STRIPS['val'][0], model.palette,
        model.classes, note,
    )  # fmt: skip
    return save_figure(figure, folder / 'demo.png', dpi=110)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/demo'),
        help='logs, checkpoints, scores.json and demo.png go there, replacing those of an '
        'earlier demo (default: %(default)s)',
    )
    parser.add_argument(
        '--iters', type=positive, help="iterations of each training (default: the configs' own)"
    )
    parser.add_argument('--seed', type=seed, default=0, help='of each training (default: 0)')
    parser.add_argument(
        '--jobs',
        type=positive,
        default=cores(),
        help='trainings at a time, one core each (default: as many as there are cores)',
    )
    return parser.parse_args(argv)


def run(args):
    """All of it, in a folder that no other demo uses."""
    start, folder = time.time(), args.work_dir
    options = ['--cfg-options', f'randomness.seed={args.seed}']
    if args.iters:
        options += [
            f'train_cfg.max_iters={args.iters}',
            f'train_cfg.val_interval={args.iters}',
            f'param_scheduler.0.end={args.iters}',
            f'default_hooks.checkpoint.interval={args.iters}',
        ]
    # of an earlier demo, perhaps one that was killed: nothing of it must be taken for this one's
    for name in CONFIGS:
        shutil.rmtree(work_dir_of(folder, name), ignore_errors=True)
    for name in ('scores.json', 'demo.png'):
        (folder / name).unlink(missing_ok=True)
    converter = load_converter()
    picture, classes = prepare_data(converter)
    at_a_time = min(args.jobs, len(CONFIGS))
    print(f'Training {len(CONFIGS)} models, {at_a_time} at a time: same data, backbone and seed')
    # the slowest first, so that the cores end at about the same time
    seconds = run_side_by_side(
        partial(train, folder=folder, options=options), list(CONFIGS)[::-1], at_a_time
    )
    scores = {name: scores_of(work_dir_of(folder, name)) for name in CONFIGS}
    rows = [
        [name, *(f'{found[key]:.2f}' for key in METRICS), f'{seconds[name]:.0f} s']
        for name, found in scores.items()
    ]
    print(text_table(['model', *METRICS, 'training'], rows))
    print(ONE_SEED)
    (folder / 'scores.json').write_text(json.dumps(scores, indent=1) + '\n', encoding='utf-8')
    with warnings.catch_warnings():  # MMSegmentation's own, at each model
        warnings.simplefilter('ignore', UserWarning)
        figure = draw(folder, picture, classes, converter, scores)
    print(
        f'Picture: {figure}\nScores: {folder / "scores.json"}; logs and checkpoints beside it\n'
        f'{time.time() - start:.0f} s in all'
    )


@tool
def main(argv=None):
    args = parse_args(argv)
    if not Path(sys.executable).with_name('mim').is_file():
        sys.exit(
            'error: mim is not installed beside this Python; `make demo` brings it, or: '
            'pip install -r requirements/demo.txt, then pip install --no-deps -r '
            'requirements/no-deps.txt'
        )
    prepare_home()
    try:
        with only_one(args.work_dir):
            run(args)
    except KeyboardInterrupt:
        print('\nstopped', file=sys.stderr)
        sys.exit(130)


if __name__ == '__main__':
    main()
