"""Command lines with a plausible mistake in them, for every argument of every tool there is.

The list is made from the parsers of the tools, so a new tool is in it by itself: what an argument
takes is known from its name, type and choices. A name that isn't known fails the test, and gets a
line in `VALID`.
"""

import argparse
import contextlib
import io
import os
import sys
import traceback
from pathlib import Path
from typing import NamedTuple, Optional

import torch
from mmengine.config import Config, DictAction

from tests import tiny


class Case(NamedTuple):
    """A command line, and what its error has to name."""

    tool: Path
    label: str
    argv: list
    named: Optional[str] = None

    @property
    def id(self):
        return f'{self.tool.stem}: {self.label}'


# ------------------------------------------------------------------ files, right and wrong


class Payload:
    """Pickles as a call that leaves a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, 'w')


def make_files(folder):
    """Small files of every kind in `folder`; a job of MDRL and one of CAR that work."""
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    init_default_scope('mmseg')
    data = tiny.write_dataset(folder / 'data', train=2, val=2)
    stock = Config.fromfile(tiny.write_config(folder / 'stock.py', data))
    stock.model.backbone.norm_cfg = dict(type='BN')
    head = dict(
        type='MDRLHead', in_channels=64, in_index=0, channels=16, num_classes=3,
        norm_cfg=dict(type='BN'), bank=dict(type='DistributionBank', num_distributions=2),
        loss_consistency=[dict(type='ClassLocalConsistencyLoss')],
    )  # fmt: skip
    mcibi = {key: head[key] for key in head if key not in ('bank', 'loss_consistency')}
    mcibi['type'] = 'MCIBIHead'
    protoseg = dict(mcibi, type='ProtoSegHead')
    imports = dict(imports=['mmseg_cmdl'], allow_failed_imports=False)
    for name, options in (
        ('mdrl', dict(decode_head=head)),
        ('mcibi', dict(decode_head=mcibi)),
        ('protoseg', dict(decode_head=protoseg)),
        ('car', dict(type='CAREncoderDecoder')),
    ):
        cfg = Config(dict(custom_imports=imports, **stock.to_dict()))
        for key, value in options.items():
            cfg.model[key] = value
        cfg.dump(folder / f'{name}.py')
        model = MODELS.build(cfg.model)
        torch.save(dict(state_dict=model.state_dict(), meta={}), folder / f'{name}.pth')
    text = (folder / 'mdrl.py').read_text()
    whole = (folder / 'mdrl.pth').read_bytes()
    (folder / 'folder').mkdir()
    for name, content in {
        'empty.py': '',
        'numbers.py': 'x = 1\n',
        'cut_off.py': text[: len(text) // 2] + '\nmodel = dict(',
        'undefined.py': text + '\nmodel = dict(decode_head=head)\n',
        'no_base.py': "_base_ = ['./gone_base.py']\n",
        'no_model.py': text + '\nmodel = None\n',
        'model_list.py': text + '\nmodel = [1, 2]\n',
        'notes.txt': 'not a config\n',
        'broken.json': '{"model": ',
        'no_module.py': text + "\ncustom_imports = dict(imports=['gone_module'])\n",
        'empty.pth': '', 'text.pth': 'not a checkpoint\n',
    }.items():  # fmt: skip
        (folder / name).write_text(content)
    (folder / 'picture.py').write_bytes((data / 'images' / 'val' / '0.png').read_bytes())
    (folder / 'cut_off.pth').write_bytes(whole[: len(whole) // 2])
    torch.save([1, 2, 3], folder / 'list.pth')
    torch.save(dict(state_dict=dict(weight=torch.ones(2))), folder / 'other.pth')
    torch.save(dict(state_dict=Payload(folder / 'RAN')), folder / 'payload.pth')
    return folder


CONFIGS = [
    'gone.py', 'folder', 'empty.py', 'numbers.py', 'cut_off.py', 'undefined.py', 'no_base.py',
    'no_model.py', 'model_list.py', 'notes.txt', 'broken.json', 'no_module.py', 'picture.py',
    'mdrl.pth',
]  # fmt: skip
CHECKPOINTS = [
    'gone.pth', 'folder', 'empty.pth', 'text.pth', 'cut_off.pth', 'list.pth', 'other.pth',
    'payload.pth', 'mdrl.py',
]  # fmt: skip
OUTSIDE = ['notes.txt/x', '/proc/nothing/x']
OVERRIDES = [
    ['nonsense'], ['=3'], ['model.decode_head.channels=many'], ['model.decode_head.channels=-1'],
    ['model.decode_head.no_such_option=1'], ['model.decode_head.type=NoSuchHead'],
    ['model.decode_head.norm_cfg=5'], ['model.decode_head.loss_consistency.9.loss_weight=1'],
    ['model.decode_head.loss_coarse.0.loss_weight=1'],
    ['model.decode_head.channels.width=1'], ['model.decode_head=3'],
    ['model.decode_head=dict(channels=1)'], ['model.decode_head=[dict(channels=1,dilation=2)]'],
]  # fmt: skip
MODEL_OVERRIDES = [['model.backbone.depth=7'], ['model.type=NoSuchSegmentor'], ['model=3']]
DATA_OVERRIDES = [
    [f'{split}_dataloader.{key}' for split in ('train', 'val', 'test')]
    for key in ('dataset.type=NoSuchDataset', 'dataset.data_root=/nowhere')
]
TRAINING_OVERRIDES = [
    ['train_cfg.max_iters=many'], ['optim_wrapper.optimizer.type=NoSuch'],
    ['optim_wrapper.optimizer.lr=fast'], ['train_cfg.type=NoSuchLoop'],
    ['param_scheduler.0.power=high'], ['default_hooks.checkpoint.interval=often'],
    ['train_dataloader.batch_size=many'], ['train_dataloader.sampler.type=NoSuch'],
]  # fmt: skip

# What a tool needs of what isn't optional; by tool and name, or by name.
VALID = {
    'config': ['{files}/mdrl.py'],
    'checkpoint': ['{files}/mdrl.pth'],
    'models': ['{files}/mdrl.py', '{files}/mdrl.pth'],
    'out': ['out'],
    'out_dir': ['out'],
    'source': ['{files}/data'],
    'target': ['target.pth'],
    'fold_car.config': ['{files}/car.py'],
    'fold_car.checkpoint': ['{files}/car.pth'],
    'fold_car.out': ['plain.pth'],
    'export.out': ['model.pt2'],
    'init_memory.out': ['memory.pth'],
    'sssegmentation.config': ['{files}/mcibi.py'],
    'protoseg.config': ['{files}/protoseg.py'],
    'cmdl.source': ['{files}/mdrl.pth'],
    'protoseg.source': ['{files}/mdrl.pth'],
    'sssegmentation.source': ['{files}/mdrl.pth'],
}
# Without these a tool would do something else or start to work.
ALSO = {
    'pixel_relation': ['--pixel', '1', '1'],
    'study': ['--dry-run'],
    'earth_climate': ['--overwrite'],
    'complexity.cfg_options': ['--configs', '{files}/mdrl.py', '--size', '1', '64', '8', '8',
                               '--seconds', '0'],
    'complexity.configs': ['--size', '1', '64', '8', '8', '--seconds', '0'],
}  # fmt: skip
# What stands for a file, and for which kind of one.
IS_CONFIG = {'config', 'configs'}
IS_CHECKPOINT = {'checkpoint', 'resume', 'sssegmentation.source', 'cmdl.source', 'protoseg.source'}
IS_OUT = {'out', 'out_dir', 'work_dir', 'show_dir', 'out_config', 'target', 'json'}
IS_NAME = {
    'model',
    'classes',
    'pixel_of',
    'modules',
    'only',
    'sections',
    'methods',
    'arm',
}
NO_MISTAKE = {
    'names', 'allow', 'local_rank', 'click', 'slurm', 'slurm_args', 'wait_time', 'naive_gib',
}  # fmt: skip
MAY_BE_ZERO = {
    'seed', 'seeds', 'show', 'image', 'draw', 'pixel', 'worst', 'best', 'patches', 'warmup',
    'images_per_class', 'dead_share', 'duplicate_cosine', 'seconds', 'tolerance', 'precise_bn',
    'resolution', *NO_MISTAKE,
}  # fmt: skip
READS_NO_DATA = {
    'export', 'fold_car', 'complexity', 'gallery', 'sssegmentation', 'cmdl', 'protoseg',
    'benchmark', 'study',
}  # fmt: skip
HEAD_ONLY = {'complexity'}


# ---------------------------------------------------------------------------- the tools


class _Caught(BaseException):
    pass


def parser_of(path, module):
    """The tool's ArgumentParser, taken when it is about to parse."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(self, *args, **kwargs):
        raise _Caught(self)

    argparse.ArgumentParser.parse_args = parse_args
    try:
        with _called_as(path, []):
            module.main()
    except _Caught as caught:
        return caught.args[0]
    finally:
        argparse.ArgumentParser.parse_args = original
    raise AssertionError(f'{path} parses no arguments')


@contextlib.contextmanager
def _called_as(path, argv):
    before = sys.argv
    sys.argv = [str(path), *argv]
    try:
        yield
    finally:
        sys.argv = before


def actions_of(parser):
    return [a for a in parser._actions if not isinstance(a, argparse._HelpAction)]


def valid_words(tool, action, files):
    name = action.dest
    words = VALID.get(f'{tool}.{name}', VALID.get(name))
    assert words is not None, (
        f'tools/**/{tool}.py needs {name}, unknown to tests/tools/mistakes.py: add to VALID'
    )
    return [word.format(files=files) for word in words]


def is_required(action):
    positional = not action.option_strings
    if action.dest == 'config':  # train.py's may be given as --resume CONFIG
        return True
    return action.required if not positional else action.nargs not in ('?', '*')


def command_lines(path, parser, files):
    """All cases of one tool."""
    tool, actions = path.stem, actions_of(parser)
    required = [action for action in actions if is_required(action)]

    def line(changed=None, words=(), extra=()):
        """A right command line, with `words` for one argument."""
        argv = []
        if changed is not None and changed not in required:
            argv += [*changed.option_strings[-1:], *words]
        # options first: a list of values ends where an option begins
        for action in sorted(required, key=lambda a: not a.option_strings):
            given = list(words) if action is changed else valid_words(tool, action, files)
            argv += [*action.option_strings[-1:], *given] if action.option_strings else given
        # what follows a list of values would belong to it
        if changed is not None and changed not in required and changed.option_strings:
            end = 1 + len(words)
            argv = [*argv[end:], *argv[:end]]
        return [*map(str, argv), *extra]

    def case(label, argv, named=None):
        return Case(path, label, argv, named)

    own = [w.format(files=files) for w in ALSO.get(tool, ())]
    if required:
        yield case('no arguments', [])
    yield case('an unknown option', [*line(extra=own), '--nonsense'], '--nonsense')
    for action in actions:
        name = action.dest
        extra = [w.format(files=files) for w in ALSO.get(f'{tool}.{name}', own)]

        def wrong(words, named=None, action=action, name=name, extra=extra):
            words = [str(word) for word in words]
            return case(f'{name} {" ".join(words)}'.replace(str(files), ''),
                        line(action, words, extra), named)  # fmt: skip

        kind = f'{tool}.{name}' if f'{tool}.{name}' in IS_CHECKPOINT else name
        if name == 'models':
            times = action.nargs // 2 if isinstance(action.nargs, int) else 1
            config, checkpoint = valid_words(tool, action, files)
            yield wrong([config], 'odd number' if action.nargs == '+' else None)
            for file in CONFIGS:
                yield wrong([files / file, checkpoint] * times, file)
            for file in CHECKPOINTS:
                yield wrong([config, files / file] * times, file)
        elif name in IS_CONFIG:
            for file in CONFIGS:
                yield wrong([files / file], file)
        elif kind in IS_CHECKPOINT:
            for file in CHECKPOINTS:
                if not (file == 'mdrl.py' and name == 'resume') and not (
                    file == 'other.pth' and name == 'resume'
                ):
                    # a converter's message is about the first key
                    other = kind not in ('checkpoint', 'resume') and file == 'other.pth'
                    yield wrong([files / file], None if other else file)
        elif name in IS_OUT:
            places = [files / OUTSIDE[0], OUTSIDE[1]]
            for other in required:
                if other.dest == 'config':
                    places += valid_words(tool, other, files)
            for place in places:
                suffix = Path(valid_words(tool, action, files)[0]).suffix if (
                    f'{tool}.{name}' in VALID) else ''  # fmt: skip
                place = str(place)
                yield wrong([place if place.endswith('.py') else place + suffix])
        elif isinstance(action, DictAction) or name == 'cfg_options':
            overrides = [*OVERRIDES]
            if tool == 'fold_car':  # its config is CAR's
                overrides = [
                    o for o in overrides if 'consistency' not in o[0] and 'coarse' not in o[0]
                ]
            overrides += MODEL_OVERRIDES if tool not in HEAD_ONLY else []
            overrides += DATA_OVERRIDES if tool not in READS_NO_DATA else []
            overrides += TRAINING_OVERRIDES if tool == 'train' else []
            for words in overrides:
                key, _, value = words[0].partition('=')
                named = value if key.endswith('.type') else key
                # a converter looks at the keys of its file first, which are no released ones here
                unnamed = words in DATA_OVERRIDES or f'{tool}.source' in IS_CHECKPOINT
                yield wrong(words, None if unnamed else named)
        elif name == 'device':
            for device in ('tpu', 'cuda:99', 'nonsense', 'meta'):
                yield wrong([device], device)
        elif action.choices:
            yield wrong(['nonsense'], 'nonsense')
        elif action.type in (int, float) or (
            callable(action.type) and action.type is not Path and name not in IS_NAME
        ):
            count = action.nargs if isinstance(action.nargs, int) else 1
            for value, fine in (
                ('many', ()), ('-5', NO_MISTAKE), ('nan', NO_MISTAKE), ('0', MAY_BE_ZERO),
            ):  # fmt: skip
                if name not in fine:
                    yield wrong([value] * count)
            if name in ('draw', 'show', 'image'):
                yield wrong(['99999'], '99999')
        elif name in IS_NAME:
            yield wrong(['nonsense'], 'nonsense')
        elif name == 'source':
            for place in ('gone', 'notes.txt', 'folder'):
                yield wrong([files / place], place)
        elif name == 'demo':
            yield wrong([files / 'gone'], 'gone')


# ------------------------------------------------------------------------------ running


class Outcome(NamedTuple):
    """How a command line ended: 'error', 'success' or 'traceback'; and what it printed."""

    kind: str
    text: str


def run(case, module, folder):
    """Run a command line in this process."""
    from mmseg.visualization import SegLocalVisualizer

    SegLocalVisualizer._instance_dict.clear()  # it is kept by name, with its folder
    out, before = io.StringIO(), os.getcwd()
    os.chdir(folder)
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(out),
            _called_as(case.tool, case.argv),
        ):
            try:
                module.main()
                kind = 'success'
            except SystemExit as end:
                kind = 'success' if end.code in (0, None) else 'error'
                if isinstance(end.code, str):
                    out.write(end.code)
            except KeyboardInterrupt:
                raise
            except BaseException:
                kind = 'traceback'
                out.write(traceback.format_exc())
    finally:
        os.chdir(before)
    text = out.getvalue()
    if kind == 'error' and 'Traceback (most recent call last)' in text:
        kind = 'traceback'
    return Outcome(kind, text)
