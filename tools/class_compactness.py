"""Variance within classes and similarity between their centres, of one or more trained segmentors.

    python tools/class_compactness.py CONFIG CHECKPOINT [CONFIG CHECKPOINT ...] [--samples N]

Measured on the validation set, in the features that enter the classifier: what class-aware
regularization (CAR) lowers. Give a run with CAR and the same run without it to compare them.
"""

import argparse
import itertools
import json
from pathlib import Path

import mmseg_cmdl  # noqa: F401  before anything of mmseg: see mmseg_cmdl.compat

from mmengine.device import get_device  # isort: skip
from mmengine.runner import Runner  # isort: skip
from mmengine.utils import track_iter_progress  # isort: skip
from mmseg.apis import init_model  # isort: skip
from prettytable import PrettyTable  # isort: skip
from mmseg_cmdl import launch  # isort: skip
from mmseg_cmdl.evaluation import measure_compactness  # isort: skip

COLUMNS = dict(
    intra_variance='variance within classes',
    relative_variance='of all variance',
    center_similarity='mean cosine of centres',
    largest_similarity='largest cosine',
)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'runs',
        nargs='+',
        metavar='CONFIG CHECKPOINT',
        help='config file and checkpoint of each run, in turn',
    )
    parser.add_argument('--samples', type=int, help='images of the validation set (default: all)')
    parser.add_argument('--device', default=get_device(), help='default: %(default)s')
    parser.add_argument('--json', type=Path, help='write all numbers there')
    args = parser.parse_args(argv)
    if len(args.runs) % 2:
        parser.error('runs are pairs of CONFIG and CHECKPOINT')
    if args.samples is not None and args.samples < 1:
        parser.error('--samples must be at least 1')
    args.runs = list(zip(args.runs[::2], args.runs[1::2]))
    return args


def measure(config, checkpoint, samples, device):
    cfg = launch.load_config(config)
    model = init_model(cfg, launch.checked_checkpoint(checkpoint), device)
    loader = Runner.build_dataloader(cfg.val_dataloader)
    batches = list(itertools.islice(iter(loader), samples)) if samples else loader
    return measure_compactness(model, track_iter_progress((iter(batches), len(batches))))


def main(argv=None):
    args = parse_args(argv)
    results = []
    for config, checkpoint in args.runs:
        print(config, flush=True)
        values = measure(config, checkpoint, args.samples, args.device)._asdict()
        results.append(dict(config=config, checkpoint=checkpoint, **values))
        print()
    table = PrettyTable(['config', *COLUMNS.values()])
    table.align = 'r'
    table.align['config'] = 'l'
    for result in results:
        table.add_row([Path(result['config']).stem, *(f'{result[key]:.4f}' for key in COLUMNS)])
    print(table)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + '\n')


if __name__ == '__main__':
    main()
