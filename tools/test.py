"""Test a segmentor: python tools/test.py CONFIG CHECKPOINT [options].

Takes any MMSegmentation config, also one without `custom_imports`.
"""

import argparse
import os
import sys

import mmseg_cmdl  # noqa: F401  before anything of mmseg: see mmseg_cmdl.compat

from mmengine.runner import Runner  # isort: skip
from mmseg.registry import RUNNERS  # isort: skip
from mmseg_cmdl import InputError, launch  # isort: skip
from mmseg_cmdl.checkpoint_file import SameModelHook, checked_checkpoint  # isort: skip
from mmseg_cmdl.config_file import load_config, setting_up, type_name  # isort: skip
from mmseg_cmdl.command_line import number, tool  # isort: skip
from mmseg_cmdl.data_guard import guard_data  # isort: skip
from mmseg_cmdl.dataset_building import leaves  # isort: skip
from mmseg_cmdl.written_files import make_folder, refuse_same  # isort: skip


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description='Test a segmentor and report its metrics')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument(
        '--work-dir',
        help='folder for the log and the metrics as JSON (default: work_dir of the config, else '
        'work_dirs/<config name>)',
    )
    parser.add_argument('--out', metavar='FOLDER', help='write predicted label maps here as PNG')
    parser.add_argument('--show', action='store_true', help='show every prediction in a window')
    parser.add_argument(
        '--show-dir',
        metavar='FOLDER',
        help='write images with ground truth and prediction painted on to '
        'FOLDER/vis_data/vis_image (in a distributed run: those of rank 0)',
    )
    parser.add_argument(
        '--wait-time', type=number(0), default=2, help='seconds that a window stays (default: 2)'
    )
    parser.add_argument(
        '--tta', action='store_true', help="test-time augmentation by the config's tta_pipeline"
    )
    parser.add_argument(
        '--allow-missing',
        action='store_true',
        help='test even if the checkpoint lacks weights of a part of the model, which then keeps '
        'its initial weights, or has a part that the model has not',
    )
    launch.add_common_arguments(parser)
    args = parser.parse_args(argv)
    has_display = any(map(os.environ.get, ('DISPLAY', 'WAYLAND_DISPLAY', 'MPLBACKEND')))
    if args.show and sys.platform.startswith('linux') and not has_display:
        parser.error('--show needs a display and there is none; use --show-dir FOLDER')
    return args


def draw_predictions(cfg, show, show_dir, wait_time):
    """Switch on the hook that paints predictions, for every image unless the config has its say."""
    if 'visualization' not in cfg.default_hooks:
        cfg.default_hooks.visualization = dict(type='SegVisualizationHook')
    hook = cfg.default_hooks.visualization
    hook.draw = True
    hook.setdefault('interval', 1)
    if show:
        hook.show, hook.wait_time = True, wait_time
    if show_dir:
        make_folder(show_dir)
        if 'visualizer' not in cfg:
            cfg.visualizer = dict(type='SegLocalVisualizer', name='visualizer')
        cfg.visualizer.save_dir = show_dir
        if not cfg.visualizer.get('vis_backends'):
            cfg.visualizer.vis_backends = [dict(type='LocalVisBackend')]


def data_folders(dataset):
    """Folders that a data set's config names, those of data sets inside it included."""
    for leaf in leaves(dataset):
        root = leaf.get('data_root') or ''
        yield root or None
        for folder in (leaf.get('data_prefix') or {}).values():
            yield os.path.join(root, folder)


def write_predictions(cfg, folder):
    """Have the metric write each predicted label map as PNG into `folder`."""
    # The metric makes the folder on rank 0 only, and other ranks may be sooner to write into it.
    make_folder(folder)
    several = isinstance(cfg.test_evaluator, (list, tuple))
    metric = cfg.test_evaluator[0] if several else cfg.test_evaluator
    metric.output_dir = folder
    if type_name(metric.type) == 'CityscapesMetric':
        metric.keep_results = True


def augment_tests(cfg):
    """Swap in the pipeline and the model wrapper of test-time augmentation."""
    if 'tta_pipeline' not in cfg:
        raise InputError(
            '--tta needs a tta_pipeline in the config; MMSegmentation has one in each of '
            'configs/_base_/datasets/*.py'
        )
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    dataset.pipeline = cfg.tta_pipeline
    cfg.model = dict(cfg.get('tta_model', dict(type='SegTTAModel')), module=cfg.model)


@tool
def main(argv=None):
    args = parse_args(argv)
    needs = ('model', 'test_dataloader', 'test_cfg', 'test_evaluator')
    cfg = load_config(args.config, args.cfg_options, args.launcher, needs)
    cfg.load_from, cfg.resume = checked_checkpoint(args.checkpoint), False
    for option, folder in (('--out', args.out), ('--show-dir', args.show_dir)):
        if folder:
            refuse_same(folder, data_folders(cfg.test_dataloader.dataset), option)
    launch.set_work_dir(cfg, args.work_dir, args.config)
    if args.show or args.show_dir:
        draw_predictions(cfg, args.show, args.show_dir, args.wait_time)
    if args.out:
        write_predictions(cfg, args.out)
    if args.tta:
        augment_tests(cfg)
    launch.start_ranks(cfg, args.local_rank)
    with setting_up(cfg, args.config, args.cfg_options):
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
        runner.register_hook(SameModelHook(args.checkpoint, args.allow_missing))
    with setting_up(cfg, args.config, args.cfg_options, runner):
        guard_data(runner, 'test')
        runner.test()
    launch.finish_ranks()


if __name__ == '__main__':
    main()
