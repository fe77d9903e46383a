"""Training jobs in processes of their own: ``python -m tests.guarantees.jobs FOLDER``.

One interpreter imports everything once and forks a process for each job of FOLDER/jobs.json, one
after the other. Each ends as FOLDER/<name>.status, with its output in FOLDER/<name>.log.
"""

import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import mmengine.runner.runner
import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from tests.guarantees import cases
from tests.paths import ROOT, TOOLS, child_environment, load_script  # noqa: F401


@HOOKS.register_module(force=True)
class KilledInMidIteration(Hook):
    """SIGKILL between backward and optimizer step: the bank has moved, the weights have not."""

    def __init__(self, iteration):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter != self.iteration:
            return
        backward = runner.optim_wrapper.backward

        def last_words(loss, **kwargs):
            backward(loss, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)

        runner.optim_wrapper.backward = last_words


@HOOKS.register_module(force=True)
class StoppedAfter(Hook):
    """Ends the process behind the last hook of an iteration, as a scheduler with a time limit."""

    priority = 'LOWEST'

    def __init__(self, iterations):
        self.iterations = iterations

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iterations:
            raise SystemExit(0)


def dump(cfg, path):
    """Config.dump without yapf, which takes seconds."""
    options = cfg.to_dict()
    path.write_text('\n'.join(f'{key} = {value!r}' for key, value in options.items()))
    return str(path)


def write_config(
    path, base, name, iterations, interval, ema=None, kill_at=None, stop_at=None, dropout=0.1,
    **options,
):  # fmt: skip
    """The tiny job of tests/tiny.py with the model of a case."""
    from tests.tiny import CLASSES

    cfg = Config.fromfile(base)
    model = cases.model_config(name, num_classes=len(CLASSES), **options)
    model['decode_head']['dropout_ratio'] = dropout
    model['data_preprocessor'] = cfg.model.data_preprocessor.to_dict()
    cfg.model = model
    hooks = [dict(type='SeedPerIterationHook')]
    if ema is not None:
        hooks.append(dict(type='EMAHook', momentum=0.1, update_buffers=ema))
    if kill_at is not None:
        hooks.append(dict(type='KilledInMidIteration', iteration=kill_at))
    if stop_at is not None:
        hooks.append(dict(type='StoppedAfter', iterations=stop_at))
    cfg.custom_hooks = hooks
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=interval)
    cfg.train_cfg.max_iters = iterations
    cfg.train_cfg.val_interval = 1000
    cfg.param_scheduler[0]['end'] = 100
    # SGD's momentum has a schedule of its own, to be taken up again as well
    momentum = dict(type='PolyMomentum', eta_min=0.5, power=1.0, begin=0, end=10, by_epoch=False)
    cfg.param_scheduler.append(momentum)
    cfg.custom_imports = dict(imports=['tests.guarantees.jobs'], allow_failed_imports=False)
    return dump(cfg, path)


def train(config, work_dir, resume, checkpoint=None):
    """What tools/train.py does."""
    from mmengine.runner import Runner

    from mmseg_cmdl.config_file import load_config

    cfg = load_config(config)
    cfg.work_dir = work_dir
    cfg.resume, cfg.load_from = resume, checkpoint
    Runner.from_cfg(cfg).train()


def run_all(folder, jobs):
    """Name -> exit status (negative: the signal) of each job; the logs are in `folder`."""
    (folder / 'jobs.json').write_text(json.dumps(jobs))
    child = subprocess.run(
        [sys.executable, '-m', 'tests.guarantees.jobs', str(folder)],
        env=dict(child_environment(), PYTHONPATH=os.pathsep.join(filter(None, sys.path))),
        timeout=1500, capture_output=True, text=True,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-3000:]
    return {job['name']: int((folder / f'{job["name"]}.status').read_text()) for job in jobs}


def _in_child(folder, job):
    log = os.open(folder / f'{job["name"]}.log', os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # a fork draws what its siblings draw, a process of its own does not
    np.random.seed()
    try:
        if 'arguments' in job:
            load_script(TOOLS / 'train.py').main(job['arguments'])
            return 0
        train(job['config'], job['work_dir'], job['resume'], job.get('checkpoint'))
    except SystemExit as end:
        return end.code
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main(folder):
    torch.set_num_threads(1)
    # for seconds, it asks compilers for their versions and lays out the config
    mmengine.runner.runner.collect_env = dict
    Config.pretty_text = property(str)
    for job in json.loads((folder / 'jobs.json').read_text()):
        pid = os.fork()
        if pid == 0:
            os._exit(_in_child(folder, job))
        status = os.waitpid(pid, 0)[1]
        (folder / f'{job["name"]}.status').write_text(str(os.waitstatus_to_exitcode(status)))


if __name__ == '__main__':
    # the classes that configs name are those of the module imported by its name
    from tests.guarantees import jobs

    jobs.main(Path(sys.argv[1]))
