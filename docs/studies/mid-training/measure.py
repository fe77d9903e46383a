"""A model that is evaluated in mid-training: does an averaged memory help, or new statistics?

Early validations, best checkpoints and short schedules meet a memory and batch norm statistics that
still move. Each run here is stopped at two points of its schedule and evaluated there in six forms
of the same weights, so that the differences between forms are not those between runs.

    python docs/studies/mid-training/measure.py --seeds 0 1 2 3 4 5 --out docs/studies/mid-training

A run that is in the results already isn't repeated. The table is written from the results.
"""

import argparse
import contextlib
import copy
import json
import statistics
import tempfile
from pathlib import Path

import mmseg_cmdl  # noqa: F401  before anything of mmseg

import torch  # isort: skip
import torch.nn.functional as F  # isort: skip
from mmengine.config import Config  # isort: skip
from mmengine.hooks import Hook  # isort: skip
from mmengine.model import ExponentialMovingAverage  # isort: skip
from mmengine.runner import Runner  # isort: skip
from mmseg_cmdl.models.memory import DistributionBank, MemoryBank  # isort: skip
from mmseg_cmdl.study.plan import write_json  # isort: skip
from mmseg_cmdl.study.report import markdown_table  # isort: skip
from mmseg_cmdl.study.statistics import estimate  # isort: skip

CONFIGS = Path(__file__).resolve().parents[3] / 'configs'
EARTH = 'fcn_r18s-d8_1xb8-500it_earth-climate-128x128.py'
#: Where MCIBI's momentum doesn't fall to 0 along the schedule, its memory jumps to the end.
CONSTANT = {'model.decode_head.momentum_power': 0.0}
METHODS = {
    'FCN': ('baselines', 'fcn', {}),
    'MDRL': ('mdrl', 'mdrl_fcn', {}),
    'MCIBI': ('mcibi', 'mcibi_fcn', {}),
    'MCIBI, momentum constant': ('mcibi', 'mcibi_fcn', CONSTANT),
    'MCIBI++': ('mcibipp', 'mcibipp_fcn', {}),
    'ProtoSeg': ('protoseg', 'protoseg_fcn', {}),
}
AT = (125, 250)  # of 500 iterations
WINDOW = 50  # the memory is averaged over so many iterations
BATCHES = 20  # from which statistics are taken anew
EMA = 0.05  # share of the new weights in each iteration
FORMS = {
    'memory': 'memory averaged',
    'statistics': 'statistics anew',
    'both': 'both',
    'ema': 'EMA of weights',
    'ema_buffers': 'EMA of buffers too',
}


class Done(Exception):
    """The run has been evaluated at its last point."""


class Evaluate(Hook):
    """Follows the averages and evaluates all forms at the points of `AT`."""

    priority = 'LOWEST'

    def before_train(self, runner):
        self.scores = {}
        self.sums, self.averages = {}, {}
        for name, buffers in (('ema', False), ('ema_buffers', True)):
            self.averages[name] = ExponentialMovingAverage(
                runner.model, momentum=EMA, update_buffers=buffers
            )

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        iteration = runner.iter + 1
        for average in self.averages.values():
            average.update_parameters(runner.model)
        point = min((at for at in AT if at >= iteration), default=None)
        if point is not None and iteration > point - WINDOW:
            for name, bank in banks(runner.model):
                value = getattr(bank, bank.memory_name).double()
                self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
        if iteration in AT:
            self.scores[str(iteration)] = self.all_forms(runner)
            self.sums = {}
        if iteration == AT[-1]:
            raise Done

    def all_forms(self, runner):
        trained = copy.deepcopy(runner.model.state_dict())
        batches = [next(runner.train_loop.dataloader_iterator) for _ in range(BATCHES)]

        def score(state, average=False, statistics=False):
            runner.model.load_state_dict(state)
            with torch.no_grad():
                if average:
                    self.average_memories(runner.model)
                if statistics:
                    prepare = runner.model.data_preprocessor
                    torch.optim.swa_utils.update_bn(
                        (prepare(copy.deepcopy(batch), True)['inputs'] for batch in batches),
                        runner.model,
                    )
            found = runner.val_loop.run()
            runner.model.train()
            return round(float(found['mIoU']), 2)

        out = dict(trained=score(trained), statistics=score(trained, statistics=True))
        if self.sums:
            out['memory'] = score(trained, average=True)
            out['both'] = score(trained, average=True, statistics=True)
        for name, average in self.averages.items():
            out[name] = score(average.module.state_dict())
        runner.model.load_state_dict(trained)
        return out

    def average_memories(self, model):
        for name, bank in banks(model):
            mean = self.sums[name] / WINDOW
            if isinstance(bank, DistributionBank):  # unit vectors
                mean = F.normalize(mean, dim=-1)
            getattr(bank, bank.memory_name).copy_(mean)


def banks(model):
    """Name and module of each memory bank."""
    return [(n, m) for n, m in model.named_modules() if isinstance(m, MemoryBank)]


def run(method, seed):
    """mIoU of each form at each point of `AT`."""
    folder, name, options = METHODS[method]
    cfg = Config.fromfile(CONFIGS / folder / EARTH.replace('fcn', name, 1))
    cfg.merge_from_dict({**options, 'randomness': dict(seed=seed), 'train_cfg.val_interval': 10000})
    cfg.default_hooks.pop('checkpoint', None)
    # mmengine keeps both by their names, one run after the other in this process
    cfg.experiment_name = cfg.visualizer.name = f'{method} {seed}'
    hook = Evaluate()
    with tempfile.TemporaryDirectory() as work_dir:
        cfg.work_dir = work_dir
        runner = Runner.from_cfg(cfg)
        runner.register_hook(hook)
        with contextlib.suppress(Done):
            runner.train()
    return hook.scores


def table(results):
    """Means over the seeds, and the paired differences of each form to the model as trained."""
    spread = [f'{FORMS[form]} (SD)' for form in ('statistics', 'ema_buffers')]
    head = ['method', 'iteration', 'seeds', 'as trained (SD)', *FORMS.values(), *spread]
    lines = []
    for method in METHODS:
        runs = results.get(method, {})
        for at in map(str, AT):
            if len(runs) < 2:
                continue

            def spread_of(form, runs=runs, at=at):
                found = [scores[at][form] for scores in runs.values()]
                return f'{statistics.mean(found):.2f} ({statistics.stdev(found):.2f})'

            row = [method, at, str(len(runs)), spread_of('trained')]
            for form in FORMS:
                if form not in next(iter(runs.values()))[at]:
                    row.append('')
                    continue
                found = estimate([s[at][form] - s[at]['trained'] for s in runs.values()])
                row.append(f'{found.mean:+.2f} [{found.low:.2f}, {found.high:.2f}]')
            lines.append([*row, spread_of('statistics'), spread_of('ema_buffers')])
    return markdown_table(head, lines) + '\n'


def write(results, folder):
    """The results, and the page with the table in it."""
    write_json(folder / 'results.json', results)
    page = folder / 'index.md'
    if page.exists():
        text = page.read_text(encoding='utf-8')
        before, _, rest = text.partition('<!-- table -->\n')
        after = rest.partition('<!-- end of table -->\n')[2]
        between = f'<!-- table -->\n{table(results)}<!-- end of table -->\n'
        page.write_text(before + between + after, encoding='utf-8')


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=list(METHODS))
    parser.add_argument('--seeds', nargs='+', type=int, default=list(range(6)))
    parser.add_argument('--out', type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    path = args.out / 'results.json'
    for seed in args.seeds:
        for method in args.methods:
            results = json.loads(path.read_text()) if path.exists() else {}
            if str(seed) not in results.get(method, {}):
                scores = run(method, seed)
                # another process may have written meanwhile
                results = json.loads(path.read_text()) if path.exists() else {}
                results.setdefault(method, {})[str(seed)] = scores
                write(results, args.out)
                print(method, seed, scores, flush=True)
    print(table(json.loads(path.read_text())))


if __name__ == '__main__':
    main()
