"""Train a segmentor: python tools/train.py CONFIG [options].

Takes any MMSegmentation config, also one without `custom_imports`.
"""

import argparse
import sys

import mmseg_cmdl  # noqa: F401  before anything of mmseg: see mmseg_cmdl.compat

from mmengine.device import get_device  # isort: skip
from mmengine.runner import Runner  # isort: skip
from mmseg.registry import RUNNERS  # isort: skip
from mmseg_cmdl import InputError, launch  # isort: skip
from mmseg_cmdl.checkpoint_file import (  # isort: skip
    StoredConfigHook,
    checked_checkpoint,
    has_checkpoint,
    latest_checkpoint,
)
from mmseg_cmdl.config_file import load_config, setting_up, type_name  # isort: skip
from mmseg_cmdl.command_line import tool  # isort: skip
from mmseg_cmdl.data_guard import guard_data  # isort: skip


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description='Train a segmentor')
    parser.add_argument('config', nargs='?', help='config file')
    parser.add_argument(
        '--work-dir',
        help='folder for logs and checkpoints (default: work_dir of the config, else '
        'work_dirs/<config name>)',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from this checkpoint; without a value, or with "auto", from the latest one in '
        'the work dir, or from the start if there is none yet',
    )
    parser.add_argument(
        '--amp', action='store_true', help='automatic mixed precision (needs a GPU)'
    )
    launch.add_common_arguments(parser)
    args = parser.parse_args(argv)
    if args.config is None and (args.resume or '').endswith('.py'):
        # MMSegmentation's own --resume takes no value, so `train.py --resume CONFIG` is in use.
        args.config, args.resume = args.resume, 'auto'
    if args.config is None:
        parser.error('the following arguments are required: config')
    return args


def enable_amp(cfg):
    """Turn the plain optimizer wrapper into the mixed-precision one, or say why that can't be."""
    kind = type_name(cfg.optim_wrapper.get('type', 'OptimWrapper'))
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise InputError(
            f'--amp replaces optim_wrapper.type OptimWrapper, but the config has {kind}'
        )
    if get_device() == 'cpu':
        raise InputError('--amp needs a GPU and PyTorch sees none; leave it out')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def set_resume(cfg, resume):
    """Tell the runner where to go on from; the config's `load_from` is for a fresh start only."""
    if resume is None:
        return
    path = latest_checkpoint(cfg.work_dir) if resume == 'auto' else checked_checkpoint(resume)
    if path is None:
        print(f'--resume: nothing was saved in {cfg.work_dir} yet, training starts from the start')
        cfg.resume = False
    else:
        cfg.resume, cfg.load_from = True, path
        launch.take_up_seed(cfg, path)


def warn_of_an_earlier_training(runner):
    """mmengine writes beside and over what another training has left, without a word."""
    if not runner._resume and has_checkpoint(runner.work_dir):
        runner.logger.warning(
            f'{runner.work_dir} holds checkpoints of an earlier training. New ones replace those '
            'of the same name and stand among the others: give another --work-dir to keep both '
            'apart, or --resume to go on with that training'
        )


@tool
def main(argv=None):
    args = parse_args(argv)
    needs = ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper')
    cfg = load_config(args.config, args.cfg_options, args.launcher, needs)
    launch.set_work_dir(cfg, args.work_dir, args.config)
    set_resume(cfg, args.resume)
    if cfg.get('load_from'):
        checked_checkpoint(cfg.load_from)
    if args.amp:
        enable_amp(cfg)
    launch.start_ranks(cfg, args.local_rank)
    with setting_up(cfg, args.config, args.cfg_options):
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
        runner.register_hook(StoredConfigHook())
    warn_of_an_earlier_training(runner)
    with setting_up(cfg, args.config, args.cfg_options, runner):
        guard_data(runner, 'train', 'val')
        try:
            runner.train()
        except KeyboardInterrupt:
            last = f'the last checkpoint in {cfg.work_dir}'
            print(f'\nstopped; with --resume the same command goes on from {last}', file=sys.stderr)
            sys.exit(130)
    launch.finish_ranks()


if __name__ == '__main__':
    main()
