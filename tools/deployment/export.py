"""Export a segmentor: python tools/deployment/export.py CONFIG CHECKPOINT OUT [OUT ...] [options].

OUT ends in .onnx or in .pt2 (torch.export). The graph takes images [B, 3, H, W], with B, H and W
dynamic, and gives logits [B, K, H, W]. Training-only parts are left out and the memory of a head is
folded into a 1x1 conv. What was written is compared with the PyTorch model on three sizes and two
batch sizes, and an ONNX graph is held to a list of node types that every runtime has.
"""

import argparse
import json
import os
import sys

import mmseg_cmdl  # noqa: F401  before anything of mmseg: see mmseg_cmdl.compat

import torch  # isort: skip
from mmengine.config import DictAction  # isort: skip
from mmengine.runner import load_checkpoint  # isort: skip
from mmengine.registry import init_default_scope  # isort: skip
from mmengine.utils import import_modules_from_strings  # isort: skip
from mmseg.registry import MODELS  # isort: skip
from mmseg_cmdl import launch  # isort: skip
from mmseg_cmdl.compat import swaps_channels  # isort: skip
from mmseg_cmdl.deployment import (  # isort: skip
    ExportError,
    InferenceModel,
    check_nodes,
    compare,
    export_program,
    to_onnx,
)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description='Export a segmentor to ONNX or torch.export, with dynamic batch and size'
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument(
        'out', nargs='+', metavar='OUT', help='file to write: .onnx, or .pt2 for torch.export'
    )
    parser.add_argument(
        '--output',
        choices=['logits', 'probabilities', 'labels'],
        default='logits',
        help='what the graph gives (default: %(default)s)',
    )
    parser.add_argument(
        '--normalize',
        action='store_true',
        help='put mean and std of the data preprocessor into the graph, which then takes 0..255 '
        '(channels in the order that the network has, RGB in most configs)',
    )
    parser.add_argument(
        '--smallest-side',
        type=int,
        default=32,
        metavar='N',
        help='height and width that will be fed are at least this (default: %(default)s)',
    )
    parser.add_argument('--opset', type=int, default=18, help='of ONNX (default: %(default)s)')
    parser.add_argument(
        '--allow',
        nargs='+',
        default=[],
        metavar='NODE',
        help='ONNX node types to allow besides those that every runtime has',
    )
    parser.add_argument(
        '--tolerance', type=float, default=1e-4, help='largest difference (default: %(default)s)'
    )
    parser.add_argument('--no-check', action='store_true', help="don't compare with PyTorch")
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
        help='override settings of the config',
    )  # fmt: skip
    args = parser.parse_args(argv)
    for path in args.out:
        if os.path.splitext(path)[1] not in ('.onnx', '.pt2'):
            parser.error(f'OUT must end in .onnx or .pt2 (torch.export), got {path!r}')
    return args


def build(cfg, checkpoint):
    """The segmentor in evaluation mode, on the CPU, with the weights of `checkpoint`."""
    imports = cfg.get('custom_imports')
    if imports:
        import_modules_from_strings(**imports)
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    for part in (cfg.model, cfg.model.get('backbone', {})):
        part.pop('pretrained', None)  # the checkpoint has the weights
        part.pop('init_cfg', None)
    model = MODELS.build(cfg.model)
    state = load_checkpoint(model, checkpoint, map_location='cpu')
    return model.eval(), state.get('meta', {})


def description(model, meta, args):
    """Properties of an ONNX file: what a user of it has to know."""
    preprocessor = model.data_preprocessor
    facts = {'output': args.output, 'normalize': args.normalize}
    if getattr(preprocessor, '_enable_normalize', False):
        facts['mean'] = preprocessor.mean.flatten().tolist()
        facts['std'] = preprocessor.std.flatten().tolist()
        facts['channel_order'] = 'RGB' if swaps_channels(preprocessor) else 'BGR'
    for key in ('classes', 'palette'):
        value = (meta.get('dataset_meta') or {}).get(key)
        if value is not None:
            facts[key] = [list(x) if isinstance(x, (tuple, list)) else x for x in value]
    return {key: json.dumps(value) for key, value in facts.items()}


def runtime(path):
    """The function of images that a written file is."""
    if path.endswith('.pt2'):
        return torch.export.load(path).module()
    try:
        import onnxruntime
    except ImportError as error:
        raise ExportError(
            'onnxruntime is not installed, so the file cannot be checked; run: pip install '
            'onnxruntime, or pass --no-check'
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    return lambda images: torch.from_numpy(session.run(None, {'images': images.numpy()})[0])


def plain_function(model, args, mean, std):
    """The model as it was loaded, nothing folded or taken off, with the same kind of output."""

    def function(images):
        if args.normalize:
            images = (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        size = tuple(images.shape[2:])
        logits = model.encode_decode(
            images, [dict(img_shape=size, pad_shape=size, ori_shape=size)] * len(images)
        )
        if args.output == 'logits':
            return logits
        if model.out_channels == 1:
            probabilities = logits.sigmoid()
            heads = model.decode_head
            head = heads[-1] if isinstance(heads, torch.nn.ModuleList) else heads
            labels = (probabilities > head.threshold).long().squeeze(1)
        else:
            probabilities, labels = logits.softmax(dim=1), logits.argmax(dim=1)
        return probabilities if args.output == 'probabilities' else labels

    return function


def write(program, path, model, meta, args):
    """Write one file and check it; a file that doesn't pass is removed."""
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    print(f'writing {path} ...', flush=True)
    mean, std = normalization(model, args)
    try:
        if path.endswith('.pt2'):
            torch.export.save(program, path)
        else:
            to_onnx(program, path, args.opset, description(model, meta, args))
            counts = check_nodes(path, args.allow)
            print(f'  {sum(counts.values())} nodes: ' + ', '.join(
                f'{number} {name}' for name, number in sorted(counts.items())))  # fmt: skip
        if not args.no_check:
            side = max(args.smallest_side, 64)
            sizes = ((side, side), (side + 33, side + 1), (side + 16, 2 * side))
            shapes = [(batch, *size) for batch in (1, 3) for size in sizes]
            worst = compare(
                plain_function(model, args, mean, std), runtime(path),
                next(model.parameters()), shapes, args.tolerance, args.normalize,
            )  # fmt: skip
            print(f'  same as PyTorch on {len(shapes)} shapes, largest difference {worst:.1e}')
    except BaseException:
        for name in (path, f'{path}.data'):
            if os.path.isfile(name):
                os.remove(name)
        raise


def normalization(model, args):
    """(mean, std) of the data preprocessor if they go into the graph, else (None, None)."""
    if not args.normalize:
        return None, None
    preprocessor = model.data_preprocessor
    if not getattr(preprocessor, '_enable_normalize', False):
        raise ExportError('--normalize: the data preprocessor of this config has no mean and std')
    return preprocessor.mean.flatten().tolist(), preprocessor.std.flatten().tolist()


def main(argv=None):
    args = parse_args(argv)
    cfg = launch.load_config(args.config, args.cfg_options)
    checkpoint = launch.checked_checkpoint(args.checkpoint)
    try:
        model, meta = build(cfg, checkpoint)
        mean, std = normalization(model, args)
        print('recording the model ...', flush=True)
        side = max(args.smallest_side, 64)
        program = export_program(
            InferenceModel(model, args.output, mean, std),
            args.smallest_side,
            (2, side, side + 32),
        )
        for path in args.out:
            write(program, path, model, meta, args)
    except ExportError as error:
        raise SystemExit(f'error: {error}') from error
    return 0


if __name__ == '__main__':
    sys.exit(main())
