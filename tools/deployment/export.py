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
from mmengine.registry import init_default_scope  # isort: skip
from mmseg.registry import MODELS  # isort: skip
from mmseg_cmdl import InputError  # isort: skip
from mmseg_cmdl.checkpoint_file import checked_checkpoint, load_state  # isort: skip
from mmseg_cmdl.config_file import load_config, setting_up, without_pretrained  # isort: skip
from mmseg_cmdl.config_overrides import add_overrides  # isort: skip
from mmseg_cmdl.command_line import number, positive, tool  # isort: skip
from mmseg_cmdl.compat import swaps_channels  # isort: skip
from mmseg_cmdl.deployment import (  # isort: skip
    ExportError,
    InferenceModel,
    check_nodes,
    checked_shapes,
    compare,
    export_program,
    in_channels,
    needed_packages,
    to_onnx,
)
from mmseg_cmdl.utils import last_head  # isort: skip
from mmseg_cmdl.written_files import make_folder, refuse_same, written_beside  # isort: skip


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
        help='output of the graph (default: %(default)s)',
    )
    parser.add_argument(
        '--normalize',
        action='store_true',
        help='put mean and std of the data preprocessor into the graph, which then takes 0..255 '
        '(channels in the order that the network has, RGB in most configs)',
    )
    parser.add_argument(
        '--smallest-side',
        type=positive,
        default=32,
        metavar='N',
        help='smallest height and width of input images (default: %(default)s)',
    )
    parser.add_argument(
        '--opset', type=positive, default=18, help='operator set of ONNX (default: %(default)s)'
    )
    parser.add_argument(
        '--allow',
        nargs='+',
        default=[],
        metavar='NODE',
        help='ONNX node types to allow besides those that every runtime has',
    )
    parser.add_argument(
        '--tolerance',
        type=number(0),
        default=1e-4,
        help='largest difference (default: %(default)s)',
    )
    parser.add_argument('--no-check', action='store_true', help="don't compare with PyTorch")
    add_overrides(parser)
    args = parser.parse_args(argv)
    for path in args.out:
        if os.path.splitext(path)[1] not in ('.onnx', '.pt2'):
            parser.error(f'OUT must end in .onnx or .pt2 (torch.export), got {path!r}')
    return args


def build(cfg, checkpoint):
    """The segmentor in evaluation mode, on the CPU, with the weights of `checkpoint`."""
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    without_pretrained(cfg.model)
    model = MODELS.build(cfg.model)
    content = load_state(model, checkpoint, 'Give the config that it was trained with')
    return model.eval(), content.get('meta') or {}


def describe_input(facts, args):
    """What a caller of the graph has to do to an image first, as a sentence."""
    order = json.loads(facts.get('channel_order', 'null'))
    order = f'channels in the order {order}' if order else 'channels as in training'
    if args.normalize:
        return f'images are numbers of 0..255, {order}; mean and std are in the graph'
    if 'mean' not in facts:
        return f'images as in training, {order}; the config normalises nothing'
    return (
        f'images are (numbers of 0..255 - mean) / std, {order}, with mean {facts["mean"]} and std '
        f'{facts["std"]}'
    )


def description(model, meta, args):
    """Properties of an ONNX file: what a user of it has to know."""
    preprocessor = model.data_preprocessor
    facts = {'output': args.output, 'normalize': args.normalize}
    if getattr(preprocessor, '_enable_normalize', False):
        facts['mean'] = preprocessor.mean.flatten().tolist()
        facts['std'] = preprocessor.std.flatten().tolist()
    if in_channels(model) == 3:
        # MMSegmentation loads BGR
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
    import onnxruntime

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
            labels = (probabilities > last_head(model).threshold).long().squeeze(1)
        else:
            probabilities, labels = logits.softmax(dim=1), logits.argmax(dim=1)
        return probabilities if args.output == 'probabilities' else labels

    return function


def write(program, path, model, reference, facts, args):
    """Write one file and check it; one that doesn't pass leaves what was there before."""
    print(f'writing {path} ...', flush=True)
    with written_beside(path) as file:
        file = str(file)
        if path.endswith('.pt2'):
            torch.export.save(program, file, extra_files={'metadata.json': json.dumps(facts)})
        else:
            to_onnx(program, file, args.opset, facts)
            counts = check_nodes(file, args.allow)
            print(f'  {sum(counts.values())} nodes: ' + ', '.join(
                f'{number} {name}' for name, number in sorted(counts.items())))  # fmt: skip
        if not args.no_check:
            shapes = checked_shapes(args.smallest_side)
            worst = compare(
                reference, runtime(file), next(model.parameters()), shapes, args.tolerance,
                args.normalize, in_channels(model),
            )  # fmt: skip
            print(f'  same as PyTorch on {len(shapes)} shapes, largest difference {worst:.1e}')


def normalization(model, args):
    """(mean, std) of the data preprocessor if they go into the graph, else (None, None)."""
    if not args.normalize:
        return None, None
    preprocessor = model.data_preprocessor
    if not getattr(preprocessor, '_enable_normalize', False):
        raise ExportError('--normalize: the data preprocessor of this config has no mean and std')
    return preprocessor.mean.flatten().tolist(), preprocessor.std.flatten().tolist()


@tool
def main(argv=None):
    args = parse_args(argv)
    for i, path in enumerate(args.out):
        refuse_same(path, [args.config, args.checkpoint, *args.out[:i]])
        if os.path.isdir(path):
            raise InputError(f'OUT {path} is a folder; name a file in it')
        make_folder(os.path.dirname(path) or '.')
    needed_packages(args.out, check=not args.no_check)
    cfg = load_config(args.config, args.cfg_options)
    checkpoint = checked_checkpoint(args.checkpoint)
    with setting_up(cfg, args.config, args.cfg_options):
        model, meta = build(cfg, checkpoint)
    mean, std = normalization(model, args)
    facts = description(model, meta, args)
    print('recording the model ...', flush=True)
    program = export_program(InferenceModel(model, args.output, mean, std), args.smallest_side)
    for path in args.out:
        write(program, path, model, plain_function(model, args, mean, std), facts, args)
    print(f'input: {describe_input(facts, args)}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
