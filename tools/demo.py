"""Train FCN and MDRL-FCN on synthetic scenes with the same budget and show what came out.

Goes through `mim train` and `mim test`, as a user would, so the package must be installed and not
in editable mode. Needs no data and no GPU; two CPU cores take some minutes.

    python tools/demo.py                    # or: make demo
    python tools/demo.py --iters 1000 --work-dir work_dirs/longer-demo
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import mmseg_cmdl  # noqa: F401  before anything of mmseg

import matplotlib  # isort: skip
import numpy as np  # isort: skip
import torch  # isort: skip
from mmengine.dataset import pseudo_collate  # isort: skip
from mmseg.apis import init_model  # isort: skip
from mmseg.registry import DATASETS  # isort: skip
from prettytable import PrettyTable  # isort: skip

from mmseg_cmdl.launch import prepare_home  # isort: skip
from mmseg_cmdl.visualization import color_distributions, color_labels  # isort: skip

CONFIGS = {
    'FCN': 'fcn_r18s-d8_1xb8-demo_synthetic-128x128.py',
    'MDRL-FCN': 'mdrl_fcn_r18s-d8_1xb8-demo_synthetic-128x128.py',
}
ITERATION = re.compile(r'Iter\(train\)\s*\[\s*(\d+)/(\d+)\].*?eta: (\S+).*? loss: (\S+)')


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
        with (
            open(log, 'w') as file,
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
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
        self._running.remove(process)
        if process.returncode:
            if not self._stopped:
                sys.stderr.write('\n' + ''.join(lines[-25:]))
            raise SystemExit(f'error: "{" ".join(command)}" failed; the whole output is in {log}')
        self.progress.finish(label, time.time() - start)

    def stop(self):
        self._stopped = True
        for process in list(self._running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)


def run_side_by_side(function, names):
    """{name: function(name, jobs)}, each in a thread of its own; stops all where one fails."""
    jobs = Jobs()
    with ThreadPoolExecutor(len(names)) as pool:
        futures = {name: pool.submit(function, name, jobs) for name in names}
        try:
            for future in as_completed(futures.values()):
                future.result()
        except BaseException:  # Ctrl-C too: nothing must go on in the background
            jobs.stop()
            raise
    return {name: future.result() for name, future in futures.items()}


def train_and_test(name, jobs, folder, options):
    """Checkpoint, metrics and seconds of training of one model."""
    config = CONFIGS[name]
    work_dir = folder / name.lower()
    if work_dir.exists():
        shutil.rmtree(work_dir)
    work_dir.mkdir(parents=True)
    start = time.time()
    jobs.mim(
        'train',
        'mmseg_cmdl',
        config,
        '--gpus',
        0,
        '--work-dir',
        work_dir,
        *options,
        log=work_dir / 'train.out',
        label=f'training {name}',
    )
    seconds = time.time() - start
    checkpoint = Path((work_dir / 'last_checkpoint').read_text().strip())
    jobs.mim(
        'test',
        'mmseg_cmdl',
        config,
        '--gpus',
        0,
        '--checkpoint',
        checkpoint,
        '--work-dir',
        work_dir / 'test',
        log=work_dir / 'test.out',
        label=f'testing {name}',
    )
    metrics = json.loads(next((work_dir / 'test').glob('*/*.json')).read_text())
    return dict(
        checkpoint=checkpoint, metrics=metrics, seconds=seconds, config=work_dir / Path(config).name
    )


def predict(model, dataset, indices):
    """Images, label maps and predictions of some samples; for MDRL also its distribution map."""
    results = []
    for index in indices:
        data = pseudo_collate([dataset[index]])
        with torch.no_grad():
            prepared = model.data_preprocessor(data, False)
            sample = model.test_step(data)[0]
            result = dict(
                image=data['inputs'][0].permute(1, 2, 0).numpy()[..., ::-1],
                truth=sample.gt_sem_seg.data[0].numpy(),
                prediction=sample.pred_sem_seg.data[0].numpy(),
            )
            if hasattr(model.decode_head, 'distribution_map'):
                classes, distributions = model.decode_head.distribution_map(
                    model.extract_feat(prepared['inputs'])
                )
                result.update(classes=classes[0].numpy(), distributions=distributions[0].numpy())
        results.append(result)
    return results


def draw(path, results, dataset, num_distributions, scores):
    """Image, ground truth, FCN, MDRL-FCN and distribution map, a row for each sample."""
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    palette, names = dataset.metainfo['palette'], dataset.metainfo['classes']
    columns = [
        'image',
        'ground truth',
        *(f'{name}\nmIoU {score:.1f}' for name, score in scores.items()),
        'distribution of each pixel',
    ]
    rows = len(results['FCN'])
    figure, axes = plt.subplots(rows, 5, figsize=(11, 2.25 * rows + 0.9), squeeze=False)
    for row, (fcn, mdrl) in enumerate(zip(results['FCN'], results['MDRL-FCN'])):
        void = fcn['truth'] == 255
        pictures = [
            fcn['image'],
            color_labels(fcn['truth'], palette),
            *(color_labels(np.where(void, 255, r['prediction']), palette) for r in (fcn, mdrl)),
            color_distributions(mdrl['classes'], mdrl['distributions'], num_distributions, palette),
        ]
        for column, picture in enumerate(pictures):
            axis = axes[row, column]
            axis.imshow(picture, interpolation='nearest')
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(columns[column], fontsize=11)
    handles = [
        Patch(facecolor=np.array(color) / 255, edgecolor='0.5', label=name)
        for color, name in zip(palette, names)
    ]
    handles.append(Patch(facecolor='white', edgecolor='0.5', label='ignored'))
    figure.legend(
        handles=handles,
        loc='lower center',
        ncols=len(handles),
        fontsize=9,
        frameon=False,
        handlelength=1,
        columnspacing=1.2,
    )
    figure.tight_layout(rect=(0, 0.5 / figure.get_figheight(), 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/demo'),
        help='logs, checkpoints and the figure go there, replacing those of an '
        'earlier demo (default: work_dirs/demo)',
    )
    parser.add_argument(
        '--iters', type=int, help="iterations of each training (default: the configs' own)"
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of both trainings (default: 0)')
    parser.add_argument(
        '--samples',
        type=int,
        nargs='+',
        default=[0, 1, 2, 3],
        help='validation scenes in the figure (default: 0 1 2 3)',
    )
    args = parser.parse_args()
    if args.iters is not None and args.iters < 1:
        parser.error('--iters must be at least 1')
    if any(not 0 <= index < 100 for index in args.samples):
        parser.error('--samples must be in 0..99')
    return args


def main():
    args = parse_args()
    options = ['--cfg-options', f'randomness.seed={args.seed}']
    if args.iters:
        options += [
            f'train_cfg.max_iters={args.iters}',
            f'train_cfg.val_interval={args.iters}',
            f'param_scheduler.0.end={args.iters}',
            f'default_hooks.checkpoint.interval={args.iters}',
        ]
    prepare_home()
    print('FCN and MDRL-FCN on synthetic scenes, same backbone, data, seed and iterations')
    runs = run_side_by_side(partial(train_and_test, folder=args.work_dir, options=options), CONFIGS)

    table = PrettyTable(['model', 'mIoU', 'mAcc', 'aAcc', 'training'])
    table.align = 'r'
    table.align['model'] = 'l'
    for name, run in runs.items():
        metrics = (run['metrics'][key] for key in ('mIoU', 'mAcc', 'aAcc'))
        table.add_row([name, *(f'{value:.2f}' for value in metrics), f'{run["seconds"]:.0f} s'])
    print(table)
    scores = {
        name: {key: run['metrics'][key] for key in ('mIoU', 'mAcc', 'aAcc')}
        for name, run in runs.items()
    }
    (args.work_dir / 'scores.json').write_text(json.dumps(scores, indent=2))

    results = {}
    for name, run in runs.items():
        model = init_model(str(run['config']), str(run['checkpoint']), device='cpu')
        dataset = DATASETS.build(model.cfg.val_dataloader.dataset)
        results[name] = predict(model, dataset, args.samples)
    figure = args.work_dir / 'demo.png'
    draw(
        figure,
        results,
        dataset,
        model.decode_head.bank.num_distributions,
        {name: run['metrics']['mIoU'] for name, run in runs.items()},
    )
    print(f'Figure: {figure}\nLogs and checkpoints: {args.work_dir}')


if __name__ == '__main__':
    main()
