"""Speed and memory of the parts of all methods, as ratios measured in one run.

Each section times its forms in turn, round after round, so that whatever else the machine does
falls on all of them alike; it prints medians and their ratios. On a machine that others use, count
the CPU time of one thread instead of the time that passes:

    python tools/benchmark.py                         # everything, on CUDA where there is one
    python tools/benchmark.py losses --device cpu --threads 1 --cpu-time --json benchmark.json
"""

import argparse
import copy
import json
import re
import statistics
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

import mmseg_cmdl
from mmseg_cmdl.analysis.complexity import (
    CONTEXTS,
    MCIBI_TABLE_3,
    MCIBI_TABLE_3_SIZE,
    build_context,
    count_operations,
    feature_maps,
    peak_memory,
)
from mmseg_cmdl.command_line import device, number, positive, text_table, tool, whole_number
from mmseg_cmdl.models.layers.channel_weighting import NORMS, channel_weights
from mmseg_cmdl.models.losses import class_centers
from mmseg_cmdl.models.memory.class_sums import class_sums
from mmseg_cmdl.models.segmentors.class_aware_regularization import DEFAULT_LOSSES as CAR_LOSSES
from mmseg_cmdl.shipped_configs import configs_folder
from mmseg_cmdl.study.recorder import cpu_name
from mmseg_cmdl.written_files import make_folder, written_beside

CONFIGS = configs_folder() / '_base_'
METHODS = ('MDRL', 'MCIBI++', 'ProtoSeg', 'CAR')
# columns of the section complexity: heading and key of what MCIBI's table 3 gives
PAPER = {'paper: M': 'paper_m', 'paper: GMACs': 'paper_gmacs', 'paper: ms': 'paper_ms'}
# height and width of the features of the section update, at stride 8
UPDATE_SIZE = 64


class Timer:
    """Medians of forms that are run in turn.

    Args:
        device (torch.device): Waited for before the clock is read.
        repeats (int): Timed rounds.
        warmup (int): Rounds before them.
        cpu_time (bool): Count what this process computes, on all its threads together, and not the
            time that passes. Defaults to False.
    """

    def __init__(self, device, repeats, warmup, cpu_time=False):
        self.device, self.repeats, self.warmup = device, repeats, warmup
        self.clock = time.process_time if cpu_time else time.perf_counter

    def _synchronize(self):
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)

    def __call__(self, forms):
        """
        Args:
            forms (dict): Callables by name.

        Returns:
            dict: By name: `ms`, median, and `peak_mib`, memory above that held before.
        """
        times = {name: [] for name in forms}
        for round_ in range(self.warmup + self.repeats):
            for name, run in forms.items():
                self._synchronize()
                start = self.clock()
                run()
                self._synchronize()
                if round_ >= self.warmup:
                    times[name].append(1e3 * (self.clock() - start))
        return {
            name: dict(
                ms=statistics.median(values),
                peak_mib=peak_memory(forms[name], self.device) / 2**20,
            )
            for name, values in times.items()
        }


def print_table(title, columns, rows):
    """Prints results; `columns` are {heading: key of the rows}."""
    body = [[_written(row[key]) for key in columns.values()] for row in rows]
    print(f'\n{title}\n{text_table(list(columns), body)}', flush=True)


def _written(value):
    if isinstance(value, float):  # of a difference that is nearly nothing its power of ten
        return f'{value:.1e}' if 0 < value < 0.005 else f'{value:.2f}'
    return '' if value is None else value


def benchmark_losses(timer, args):
    """What the losses of a method take of a training step of a ResNet-50 at stride 8.

    The losses alone, forward and backward and with the bank's update, on features of the size that
    they have in the step, are run in turn with the step: forward, backward, no optimizer. MCIBI++
    has no loss of its memory, only the update.
    """
    results, size = [], args.image_size
    for K in args.classes:
        for method in args.methods:
            torch.manual_seed(0)
            forms = _step_and_losses(K, method, args, timer.device)
            measured = timer(forms)
            step = measured.pop('step')
            for formulation, losses in measured.items():
                results.append(
                    dict(
                        classes=K,
                        method=method,
                        formulation=formulation,
                        step_ms=step['ms'],
                        step_peak_mib=step['peak_mib'],
                        losses_ms=losses['ms'],
                        losses_peak_mib=losses['peak_mib'],
                        share=100 * losses['ms'] / step['ms'],
                        memory_share=100 * losses['peak_mib'] / step['peak_mib'],
                    )
                )
            del forms
        # at once: a step of full size takes its time
        print_table(
            'Losses, with the update of the bank where there is one, against a training step '
            f'(MDRL: paper) of a ResNet-50-d8, {args.images}x{size}x{size}, K={K}',
            {
                'method': 'method',
                'losses': 'formulation',
                'ms': 'losses_ms',
                'step, ms': 'step_ms',
                'share, %': 'share',
                'peak MiB': 'losses_peak_mib',
                'step, peak MiB': 'step_peak_mib',
                'of memory, %': 'memory_share',
            },
            [row for row in results if row['classes'] == K],
        )
    return results


def _samples(labels):
    """Labels [B, H, W] as MMSegmentation has them."""
    shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), tuple(labels.shape[1:]))
    return [SegDataSample(gt_sem_seg=PixelData(data=x[None]), metainfo=shapes) for x in labels]


def _differentiate(losses):
    sum(value for name, value in losses.items() if 'loss' in name).backward()


def _step_and_losses(K, method, args, device):
    """A training step of the paper's formulation, and the losses of both alone, by name."""
    head = dict(norm_cfg=dict(type='BN'), num_classes=K)
    prefix = {'MDRL': 'mdrl_', 'MCIBI++': 'mcibipp_'}.get(method, '')
    model = Config.fromfile(CONFIGS / 'models' / f'{prefix}fcn_r50-d8.py').model
    model.update(pretrained=None, data_preprocessor=None)
    model.backbone.norm_cfg = dict(type='BN')
    if method == 'ProtoSeg':  # in the place of FCNHead, by the one changed line
        model.decode_head.update(type='ProtoSegHead')
    model.decode_head.update(head)
    model.auxiliary_head.update(head)
    if method == 'MDRL':
        heads = {}
        for formulation in ('released', 'paper'):
            for loss in model.decode_head.loss_consistency:
                loss.formulation = formulation
            heads[formulation] = MODELS.build(copy.deepcopy(model.decode_head)).to(device)
    elif method == 'CAR':
        model.type = 'CAREncoderDecoder'
    model = MODELS.build(model).to(device).train()
    size = args.image_size
    images = torch.randn(args.images, 3, size, size, device=device)
    blocks = torch.randint(0, K, (args.images, size // 16, size // 16), device=device)
    labels = blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)
    samples = _samples(labels)

    def step():
        _differentiate(model.loss(images, samples))
        model.zero_grad(set_to_none=True)

    features = torch.randn(args.images, size // 8, size // 8, 512, device=device)
    features = F.normalize(features, dim=-1).requires_grad_()

    def mdrl(decoder):
        similarity = decoder.bank.similarity(features)
        batch = dict(embeddings=features, similarity=similarity, labels=labels)
        _differentiate(decoder.consistency(batch, similarity, labels, ignore_index=255))
        features.grad = None

    def proto_seg():
        head = model.decode_head
        similarity = head.bank.similarity(features)
        # classifying pixels is no loss of the memory
        logits = head.classify(similarity.detach())
        _differentiate(head.memory_losses(features, similarity, logits, labels))
        features.grad = None

    def car(losses):
        pixels, classes = features.flatten(0, 2), labels[:, ::8, ::8].flatten()
        centers = class_centers(pixels, classes, K)
        sum(loss(pixels, classes, *centers) for loss in losses).backward()
        features.grad = None

    forms = dict(step=step)
    if method == 'MCIBI++':
        pixels = torch.randn(args.images, 512, size // 8, size // 8, device=device).relu()
        forms['update'] = lambda: model.decode_head.memory_losses(pixels, labels)
        return forms
    if method == 'ProtoSeg':
        forms['losses and update'] = proto_seg
        return forms
    for formulation in ('paper', 'released'):
        if method == 'MDRL':
            forms[formulation] = partial(mdrl, heads[formulation].train())
        else:
            losses = [MODELS.build({**loss, 'formulation': formulation}) for loss in CAR_LOSSES]
            forms[formulation] = partial(car, losses)
    return forms


def benchmark_voting(timer, args):
    """Feature voting and its 1x1 fusion: bank times kernel first, against N maps and a conv."""
    K, N, Z = 150, 9, 512
    torch.manual_seed(0)
    bank = MODELS.build(
        dict(type='DistributionBank', num_classes=K, num_distributions=N, channels=Z)
    ).to(timer.device)
    weights = torch.randn(2, K, 64, 64, device=timer.device).softmax(1)
    kernel = torch.randn(Z, N * Z, 1, 1, device=timer.device)

    @torch.no_grad()
    def naive():
        return F.conv2d(bank.vote(weights), kernel)

    @torch.no_grad()
    def collapsed():
        matrix = F.conv2d(bank.class_vectors().flatten(1)[:, :, None, None], kernel).flatten(1)
        return F.conv2d(weights, matrix.t()[:, :, None, None])

    measured = timer(dict(naive=naive, collapsed=collapsed))
    rows = [
        dict(form=name, **values, speedup=measured['naive']['ms'] / values['ms'])
        for name, values in measured.items()
    ]
    print_table(
        f'Feature voting + fusion, K={K}, N={N}, Z={Z}, 2x64x64 pixels',
        {'form': 'form', 'ms': 'ms', 'times faster': 'speedup', 'peak MiB': 'peak_mib'},
        rows,
    )
    return rows


def benchmark_update(timer, args):
    """Updates of the memories of MCIBI, MCIBI++ and ProtoSeg: ours and a loop over the classes.

    The loop, over the classes of the batch with a gather by a mask each, is the shape of the
    released code. MCIBI's and MCIBI++'s run at label size, and there is a third form of them that
    forms the features at that size. All forms of a method give the same memory. The floor is the
    time of reading once what an update has to read.
    """
    K, C, size = 150, 512, UPDATE_SIZE
    torch.manual_seed(0)
    features = torch.randn(args.update_images, C, size, size, device=timer.device).relu()
    blocks = torch.randint(0, K, (args.update_images, 16, 16), device=timer.device)
    labels = blocks.repeat_interleave(size // 2, 1).repeat_interleave(size // 2, 2)
    labels[torch.rand(labels.shape, device=timer.device) < 0.05] = 255
    rows = []
    for method, forms_of in (
        ('MCIBI', _mcibi_updates),
        ('MCIBI++', _mcibi_plus_plus_updates),
        ('ProtoSeg', _proto_seg_updates),
    ):
        after, forms = {}, forms_of(features, labels, K)

        @torch.no_grad()
        def keeping(name, form, after=after):
            after[name] = form()

        measured = timer({name: partial(keeping, name, form) for name, form in forms.items()})
        rows += [
            dict(
                method=method,
                form=name,
                **values,
                times=values['ms'] / measured['ours']['ms'],
                times_memory=values['peak_mib'] / measured['ours']['peak_mib'],
                difference=float((after[name] - after['ours']).abs().max())
                if name != 'floor'
                else None,
            )
            for name, values in measured.items()
        ]
    sizes = 'x'.join(map(str, features.shape))
    print_table(
        f'Update of the memory, K={K}, {sizes} features, {labels.shape[1]}x{labels.shape[2]} '
        'labels;\ndifference: largest to the memory that ours gives',
        {
            'method': 'method',
            'form': 'form',
            'ms': 'ms',
            'x time': 'times',
            'peak MiB': 'peak_mib',
            'x memory': 'times_memory',
            'difference': 'difference',
        },
        rows,
    )
    return rows


def _resized(features, labels):
    return F.interpolate(features, labels.shape[1:], mode='bilinear', align_corners=False)


def _classes_of(labels):
    return [c for c in labels.unique().tolist() if c != 255]


def _sums_of_resized(features, labels, K, near=None):
    """Sums over the pixels of each class, of the map at label size.

    The resized map is formed whole; what is made of it is one image's at a time, or it would not
    fit.
    """
    plain = weighted = 0
    for image, label_map in zip(_resized(features, labels), labels):
        sums = class_sums(image.flatten(1).t(), label_map.flatten(), K, 255, near)
        plain = plain + sums.plain
        weighted = weighted if near is None else weighted + sums.weighted
    return plain if near is None else weighted


def _mcibi_updates(features, labels, K):
    start = torch.rand(K, features.shape[1], device=features.device)
    bank = MODELS.build(dict(type='FeatureBank', num_classes=K, channels=features.shape[1]))
    bank.to(features.device).filled.fill_(True)

    def ours():
        bank.features.copy_(start)
        bank.update_(features, labels, 0.5)
        return bank.features.clone()

    def mean(pixels, c):
        weights = 1 - F.cosine_similarity(pixels, start[c][None], dim=1)
        return (weights / weights.sum()) @ pixels

    others = _at_label_size(features, labels, start, mean, lambda means: means, 0.5, near=start)
    return {'ours': ours, **others}


def _mcibi_plus_plus_updates(features, labels, K):
    start = torch.rand(K, 2, device=features.device)
    bank = MODELS.build(dict(type='GaussianBank', num_classes=K)).to(features.device)

    def ours():
        bank.statistics.copy_(start)
        bank.update_(features, labels)
        return bank.statistics.clone()

    def statistics_of(means):
        return torch.stack([means.mean(dim=-1), means.std(dim=-1)], dim=-1)

    def mean(pixels, c):
        return pixels.mean(dim=0)

    others = _at_label_size(features, labels, start, mean, statistics_of, bank.momentum)
    return {'ours': ours, **others}


def _at_label_size(features, labels, start, mean, row_of, momentum, near=None):
    """The other forms of MCIBI's and MCIBI++'s updates: a class's row moves towards `row_of` the
    mean of its pixels, which are weighted by their distance from `near` where there is one.
    """

    def materialised():
        totals = _sums_of_resized(features, labels, len(start), near)
        rows = row_of(totals[:, :-1] / totals[:, -1:].clamp(min=1e-12))
        return torch.where(totals[:, -1:] > 0, start.lerp(rows, momentum), start)

    def loop():
        memory = start.clone()
        pixels = _resized(features, labels).permute(0, 2, 3, 1)
        for c in _classes_of(labels):
            memory[c].lerp_(row_of(mean(pixels[labels == c], c)), momentum)
        return memory

    return {'materialised': materialised, 'loop over classes': loop, 'floor': features.sum}


def _proto_seg_updates(features, labels, K):
    """At feature size, with the similarity, which the losses have formed; assignment 'argmax'."""
    N, C = 10, features.shape[1]
    bank = MODELS.build(
        dict(type='DistributionBank', num_classes=K, num_distributions=N, channels=C)
    ).to(features.device)
    start = bank.distributions.clone()
    embeddings = F.normalize(features.permute(0, 2, 3, 1).flatten(0, 2), dim=-1)
    step = labels.shape[1] // features.shape[2]
    classes = labels[:, ::step, ::step].flatten()
    similarity = bank.similarity(embeddings).detach()
    correct = torch.rand(classes.shape, device=features.device) < 0.5

    def ours():
        bank.distributions.copy_(start)
        bank.update_(embeddings, classes, correct, similarity=similarity)
        return bank.distributions.clone()

    def loop():
        memory = start.clone()
        for c in _classes_of(classes):
            own = classes == c
            q = (similarity[own, c].double() / bank.epsilon).exp().t()
            for _ in range(bank.iterations):
                q /= q.sum(dim=1, keepdim=True)
                q /= q.sum(dim=0)
            chosen = F.one_hot(q.argmax(dim=0), N) * correct[own, None]
            sums = chosen.t().to(embeddings) @ embeddings[own]
            moved = F.normalize(start[c].lerp(F.normalize(sums, dim=1), 1 - bank.momentum), dim=1)
            memory[c] = torch.where(chosen.sum(dim=0)[:, None] > 0, moved, start[c])
        return memory

    return {
        'ours': ours,
        'loop over classes': loop,
        'floor': lambda: embeddings.sum() + similarity.sum(),
    }


def _training_and_inference(timer, models, train, predict):
    """A training step and inference of each of {name: model}, and their ratios to the first."""
    rows = []
    for mode, run in (('training step', train), ('inference', torch.no_grad()(predict))):
        for model in models.values():
            model.train(mode == 'training step')
        measured = timer({name: partial(run, model) for name, model in models.items()})
        first = next(iter(measured.values()))
        rows += [
            dict(
                mode=mode,
                form=name,
                **values,
                ratio=values['ms'] / first['ms'],
                memory_ratio=values['peak_mib'] / first['peak_mib'],
            )
            for name, values in measured.items()
        ]
    return rows


def benchmark_head(timer, args):
    """The MDRL head against the plain FCN head: a training step and inference."""
    K, in_channels, size = 19, 2048, args.head_size
    torch.manual_seed(0)
    features = torch.randn(2, in_channels, size, size, device=timer.device, requires_grad=True)
    samples = _samples(torch.randint(0, K, (2, 8 * size, 8 * size), device=timer.device))
    common = dict(in_channels=in_channels, in_index=0, channels=512, num_classes=K)
    heads = {
        name: MODELS.build(dict(type=name, norm_cfg=dict(type='BN'), **common)).to(timer.device)
        for name in ('FCNHead', 'MDRLHead')
    }

    def train(head):
        features.grad = None
        head.zero_grad(set_to_none=True)
        _differentiate(head.loss([features], samples, None))

    def predict(head):
        head.predict([features], [sample.metainfo for sample in samples], None)

    rows = _training_and_inference(timer, heads, train, predict)
    print_table(
        f'Heads, 2x{in_channels}x{size}x{size} features, 512 channels, K={K}',
        {'head': 'form', 'mode': 'mode', 'ms': 'ms', 'x FCN': 'ratio', 'peak MiB': 'peak_mib'},
        rows,
    )
    return rows


def benchmark_networks(timer, args):
    """Networks with a decoder of several maps, plain and with a memory on the decoder's map: a
    training step, without auxiliary head, and inference.
    """
    size, results = args.image_size, []
    images = torch.randn(args.images, 3, size, size, device=timer.device)
    samples = _samples(torch.randint(0, 150, (args.images, size, size), device=timer.device))

    def train(model):
        model.zero_grad(set_to_none=True)
        _differentiate(model.loss(images, samples))

    def predict(model):
        model.predict(images, samples)

    for network in args.networks:
        models = {}
        for form, prefix in (('plain', ''), ('MDRL', 'mdrl_'), ('MCIBI', 'mcibi_')):
            cfg = Config.fromfile(CONFIGS / 'models' / f'{prefix}{network}.py').model
            cfg.backbone.pop('init_cfg', None)
            cfg.pop('data_preprocessor', None)
            cfg.decode_head.num_classes = 150
            cfg.pop('auxiliary_head', None)
            torch.manual_seed(0)
            models[form] = revert_sync_batchnorm(MODELS.build(cfg)).to(timer.device)
        rows = _training_and_inference(timer, models, train, predict)
        # at once: a step of full size takes its time
        print_table(
            f'{network}, {args.images} images of {size}x{size}, K=150',
            {
                'mode': 'mode',
                'head': 'form',
                'ms': 'ms',
                'x plain': 'ratio',
                'peak MiB': 'peak_mib',
                'x of plain': 'memory_ratio',
            },
            rows,
        )
        results += [dict(network=network, **row) for row in rows]
    return results


def benchmark_complexity(timer, args):
    """Cost of each context module as in MCIBI's table 3; `tools/analysis/complexity.py` measures
    any others, at any size.
    """
    torch.manual_seed(0)
    size = MCIBI_TABLE_3_SIZE
    features = torch.randn(*size, device=timer.device)
    with timer.device:
        heads = {name: build_context(cfg, size[1], 512, 19) for name, cfg in CONTEXTS.items()}
    measured = timer(
        {
            name: torch.no_grad()(lambda head=head: head(feature_maps(head, features)))
            for name, head in heads.items()
        }
    )
    rows = [
        dict(
            module=name,
            **measured[name],
            **count_operations(head.to('meta'), feature_maps(head, features.to('meta'))),
            **dict(zip(PAPER.values(), MCIBI_TABLE_3.get(name, [None] * 3))),
        )
        for name, head in heads.items()
    ]
    print_table(
        f'Inference on a {"x".join(map(str, size))} map; heads without classifier, 512 channels.\n'
        '"paper" is MCIBI, table 3: context modules on a V100',
        {
            'module': 'module',
            'params M': 'params_m',
            'GMACs': 'gmacs',
            'of convs': 'convs_gmacs',
            'ms': 'ms',
            'peak MiB': 'peak_mib',
            **PAPER,
        },
        rows,
    )
    return rows


def _naive_channel_weighting(layer, x):
    """DGCW's eq. 1 to 5 as they are written: [C, hw, hw] tensors, g applied to every pair."""
    pixels = x.flatten(2).transpose(1, 2)
    query, key, value, g1, g2 = (
        lambda rows, conv=conv: F.linear(rows, conv.weight.flatten(1), conv.bias)
        for conv in (layer.query, layer.key, layer.value, layer.g1, layer.g2)
    )
    weights = channel_weights(query(pixels), key(pixels), layer.norm)
    relations = g2(g1(weights * value(pixels).unsqueeze(2)).relu())
    return x + relations.sum(dim=2).transpose(1, 2).reshape(x.shape)


def benchmark_channel_weighting(timer, args):
    """DGCW's layer against the naive form, and how both grow with the number of pixels."""
    C, rows = 128, []
    for mode in ('training', 'inference'):
        for h, w in args.map_sizes:
            torch.manual_seed(0)
            layer = MODELS.build(dict(type='ChannelWeighting', channels=C, norm=args.norm))
            layer.to(timer.device).train(mode == 'training')
            x = torch.randn(1, C, h, w, device=timer.device, requires_grad=mode == 'training')

            def run(form, x=x, layer=layer, mode=mode):
                layer.zero_grad(set_to_none=True)
                x.grad = None
                with torch.set_grad_enabled(mode == 'training'):
                    out = form(x)
                if mode == 'training':
                    out.sum().backward()

            forms = {'ours': partial(run, layer)}
            pairs_gib = (h * w) ** 2 * C * 4 / 2**30
            if pairs_gib * (9 if mode == 'training' else 4) <= args.naive_gib:
                forms['naive'] = partial(run, partial(_naive_channel_weighting, layer))
            measured = timer(forms)
            naive = measured.get('naive', {})
            for name, values in measured.items():
                rows.append(
                    dict(
                        mode=mode,
                        size=f'{h}x{w}',
                        form=name,
                        **values,
                        ns_per_pair=1e6 * values['ms'] / (h * w) ** 2,
                        speedup=naive['ms'] / values['ms'] if naive else None,
                        memory_ratio=naive['peak_mib'] / values['peak_mib'] if naive else None,
                    )
                )
    print_table(
        f'DGCW, 1x{C} maps, norm {args.norm}; the naive form where it needs at most '
        f'{args.naive_gib:g} GiB',
        {
            'form': 'form',
            'mode': 'mode',
            'map': 'size',
            'ms': 'ms',
            'peak MiB': 'peak_mib',
            'ns a pair': 'ns_per_pair',
            'times faster': 'speedup',
            'times smaller': 'memory_ratio',
        },
        rows,
    )
    return rows


def _map_size(text):
    """'24x32' to (24, 32)."""
    found = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', text)
    if not found:
        raise argparse.ArgumentTypeError(f'{text!r} is no HEIGHTxWIDTH, such as 24x24')
    return int(found[1]), int(found[2])


SECTIONS = dict(
    losses=benchmark_losses,
    channel_weighting=benchmark_channel_weighting,
    voting=benchmark_voting,
    update=benchmark_update,
    head=benchmark_head,
    networks=benchmark_networks,
    complexity=benchmark_complexity,
)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'sections',
        nargs='*',
        metavar='SECTION',
        help=f'any of {", ".join(SECTIONS)} (default: all)',
    )
    parser.add_argument(
        '--device',
        type=device,
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='cpu or cuda (default: cuda where there is one)',
    )
    parser.add_argument('--repeats', type=positive, default=9, help='timed rounds (default: 9)')
    parser.add_argument(
        '--warmup', type=whole_number(0), default=2, help='rounds before them (default: 2)'
    )
    parser.add_argument('--threads', type=positive, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument(
        '--cpu-time',
        action='store_true',
        help='on a CPU: time that this process computes, not time that passes; with --threads 1',
    )
    parser.add_argument(
        '--methods',
        choices=METHODS,
        nargs='+',
        default=METHODS,
        help='of the section losses (default: all)',
    )
    parser.add_argument(
        '--classes',
        type=whole_number(2),
        nargs='+',
        default=[19, 150, 1000],
        help='K of the section losses (default: 19 150 1000)',
    )
    parser.add_argument(
        '--images',
        type=positive,
        default=2,
        metavar='B',
        help='of the sections losses and networks (default: 2)',
    )
    parser.add_argument(
        '--image-size',
        type=whole_number(16),
        default=512,
        help='of the sections losses and networks, a multiple of 16 (default: 512)',
    )
    parser.add_argument(
        '--head-size',
        type=positive,
        default=64,
        help='feature size of the section head (default: 64)',
    )
    parser.add_argument(
        '--networks',
        nargs='+',
        metavar='NAME',
        default=['segformer_mit-b0', 'upernet_swin-t'],
        help='of the section networks: NAME.py in configs/_base_/models, mdrl_NAME.py and '
        'mcibi_NAME.py (default: segformer_mit-b0 upernet_swin-t)',
    )
    parser.add_argument(
        '--map-sizes',
        type=_map_size,
        nargs='+',
        metavar='HxW',
        default=[(12, 24), (24, 24), (32, 32), (32, 64)],
        help='maps of the section channel_weighting (default: 12x24 24x24 32x32 32x64)',
    )
    parser.add_argument(
        '--norm',
        choices=NORMS,
        default='sum',
        help='normalisation in the section channel_weighting (default: sum)',
    )
    parser.add_argument(
        '--naive-gib',
        type=number(0),
        default=8,
        metavar='GIB',
        help='memory up to which that section times the naive form too (default: 8)',
    )
    parser.add_argument(
        '--update-images',
        type=positive,
        default=8,
        metavar='B',
        help='images of the section update; 0.5 GiB for each of them in the '
        'materialised forms (default: 8)',
    )
    parser.add_argument('--json', type=Path, help='write all numbers there')
    args = parser.parse_args(argv)
    if args.cpu_time and (args.threads != 1 or torch.device(args.device).type != 'cpu'):
        parser.error('--cpu-time goes with --device cpu --threads 1')
    unknown = set(args.sections) - set(SECTIONS)
    if unknown:
        parser.error(
            f'unknown section {", ".join(sorted(unknown))}: choose from {", ".join(SECTIONS)}'
        )
    return args


@tool
def main(argv=None):
    args = parse_args(argv)
    if args.json:
        make_folder(args.json.parent)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    machine = dict(
        device=torch.cuda.get_device_name(device) if device.type == 'cuda' else cpu_name(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        mmseg_cmdl=mmseg_cmdl.__version__,
    )
    print(', '.join(f'{key}: {value}' for key, value in machine.items()), flush=True)
    timer = Timer(device, args.repeats, args.warmup, args.cpu_time)
    results = dict(machine=machine)
    for name in args.sections or SECTIONS:
        results[name] = SECTIONS[name](timer, args)
        if args.json:  # after each section: a run that is cut short keeps what it has
            with written_beside(args.json) as file:
                file.write_text(json.dumps(results, indent=2) + '\n')


if __name__ == '__main__':
    main()
