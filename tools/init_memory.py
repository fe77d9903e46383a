"""Make the start values of a memory bank from the pixels of a config's train set.

    python tools/init_memory.py CONFIG memory.pth                                  # a random pixel
    python tools/init_memory.py CONFIG memory.pth --strategy cluster               # k-means centres
    python tools/train.py CONFIG --cfg-options model.decode_head.bank.init=memory.pth

This is one pass over the train set, forward only, with the config's own training pipeline. It takes
about the time of a test. Memory is bounded, whatever the size of the data set: `--strategy random`
holds one pixel for each vector, `--strategy cluster` a random sample of at most `--samples` pixels
per class (reservoir sampling).

`random` (MCIBI, 3.2) takes pixels as they are. `cluster` (MCIBI, table 2) groups the sample of each
class by cosine (spherical k-means) and takes, for each group, the mean direction at the mean
length. A DistributionBank uses only the directions, and needs N centres per class; a FeatureBank
needs one.

The vectors depend on the layers between backbone and memory. The file contains the weights of these
layers too, and the head loads both. Without --checkpoint these layers, and a backbone that isn't
pretrained, have the initial weights of the config, and norms use the statistics of their batch,
as in the first iterations of training.
"""

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

import mmseg_cmdl  # noqa: F401  before anything of mmseg: see mmseg_cmdl.compat

from mmengine.device import get_device  # isort: skip
from mmengine.logging import MMLogger  # isort: skip
from mmengine.model import revert_sync_batchnorm  # isort: skip
from mmengine.registry import init_default_scope  # isort: skip
from mmengine.runner import Runner, set_random_seed  # isort: skip
from mmengine.utils import ProgressBar  # isort: skip
from mmseg.registry import MODELS  # isort: skip
from mmseg_cmdl import InputError  # isort: skip
from mmseg_cmdl.checkpoint_file import checked_checkpoint, read_state  # isort: skip
from mmseg_cmdl.config_file import load_config, pretrained_weights, setting_up, type_name  # isort: skip
from mmseg_cmdl.config_overrides import add_overrides  # isort: skip
from mmseg_cmdl.command_line import device, positive, seed, tool  # isort: skip
from mmseg_cmdl.data_guard import collate_of, sample_check, why_never_seen  # isort: skip
from mmseg_cmdl.dataset_building import build_dataset  # isort: skip
from mmseg_cmdl.models import MemoryHead  # isort: skip
from mmseg_cmdl.models.decode_heads.label_check import batch_labels  # isort: skip
from mmseg_cmdl.models.memory import InitialMemory  # isort: skip
from mmseg_cmdl.utils import Reservoir, labels_at_feature_size  # isort: skip
from mmseg_cmdl.written_files import make_folder, refuse_same  # isort: skip


def spherical_kmeans(vectors, num_centers, generator, starts=4, iterations=50):
    """Groups vectors by cosine; each start is that of k-means++, and the closest fit is taken.

    Args:
        vectors (Tensor): [M, C], M at least 1.
        num_centers (int): N.
        generator (torch.Generator): Of the starts.
        starts (int): Number of starts. Defaults to 4.
        iterations (int): At most so many for each. Defaults to 50.

    Returns:
        Tensor: [n, C] with n <= N: the mean direction of each group at its mean length. Fewer than
        N where the vectors have fewer directions.
    """
    lengths = vectors.norm(dim=1)
    if not lengths.any():
        return vectors[:1]
    lengths = lengths[lengths > 0]
    units = F.normalize(vectors)[vectors.norm(dim=1) > 0]
    fits = [
        _fit(units, num_centers, generator, iterations)
        for _ in range(starts if num_centers > 1 else 1)
    ]
    centers, groups, _ = max(fits, key=lambda fit: fit[2])
    counts = torch.bincount(groups, minlength=len(centers))
    mean_length = torch.zeros(len(centers)).index_add_(0, groups, lengths) / counts.clamp(min=1)
    return (centers * mean_length[:, None])[counts > 0]


def _fit(units, num_centers, generator, iterations):
    """Centres [n, C], group [M] of each vector, and the sum of the cosines between them."""
    centers = units[torch.randint(len(units), (1,), generator=generator)]
    while len(centers) < num_centers:
        distance = (1 - units @ centers.t()).amin(dim=1)
        distance = torch.where(distance < 1e-6, 0, distance)
        if not distance.any():
            break
        centers = torch.cat([centers, units[torch.multinomial(distance, 1, generator=generator)]])
    groups = None
    for _ in range(iterations):
        cosines, nearest = (units @ centers.t()).max(dim=1)
        if groups is not None and torch.equal(nearest, groups):
            break
        groups = nearest
        sums = torch.zeros_like(centers).index_add_(0, groups, units)
        # a group without vectors, or whose vectors cancel, keeps its centre
        centers = torch.where(sums.norm(dim=1, keepdim=True) > 1e-6, F.normalize(sums), centers)
    return centers, groups, float(cosines.sum())


def check_head(cfg, path):
    """Refuse a config without a memory."""
    head = cfg.model.get('decode_head')
    kind = head.get('type') if isinstance(head, dict) else None
    cls = MODELS.get(kind) if isinstance(kind, str) else kind
    if cls is None or not issubclass(cls, MemoryHead):
        found = type_name(kind) if kind else 'a cascade of heads' if head else 'none'
        raise InputError(
            f'the decode head of {path} is {found}, which has no memory; take a config with '
            'MCIBIHead, MCIBIPlusPlusHead, MDRLHead or ProtoSegHead'
        )


def build_model(cfg, checkpoint, device):
    """The config's segmentor, ready to give what its memory stores."""
    model = MODELS.build(cfg.model)
    model.decode_head.bank.initial_path = None  # it is being made
    model.init_weights()
    if device == 'cpu':
        model = revert_sync_batchnorm(model)
    model.eval()
    if checkpoint is not None:
        load_layers(model, checkpoint)
    else:
        use_batch_statistics(model)
    return model.to(device)


def use_batch_statistics(model):
    """Lets the norms of a model in eval mode take the statistics of each batch."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.train()


def load_layers(model, checkpoint):
    """Backbone and the layers up to the memory from a checkpoint; what comes after may differ."""
    _, state = read_state(checkpoint)
    own = model.state_dict()
    prefixes = (
        'backbone.',
        'neck.',
        *(f'decode_head.{layer}.' for layer in model.decode_head.embedding_layers),
    )
    for key in own:
        if not key.startswith(prefixes) or key.endswith('num_batches_tracked'):
            continue
        if key not in state or state[key].shape != own[key].shape:
            found = f'as {tuple(state[key].shape)}' if key in state else 'not at all'
            raise InputError(
                f'the config needs {key} as {tuple(own[key].shape)}, and {checkpoint} '
                f'has it {found}; give a checkpoint of this config'
            )
    model.load_state_dict(
        {key: value for key, value in state.items() if key.startswith(prefixes)}, strict=False
    )


def is_pretrained(cfg):
    """Whether the config names weights for the backbone."""
    backbone = cfg.model.get('backbone') or {}
    return bool(
        pretrained_weights(cfg.model) or backbone.get('init_cfg') or backbone.get('checkpoint_path')
    )


def build_loader(cfg, seed, model):
    """The train set, each image once, checked as in training."""
    loader_cfg = cfg.train_dataloader
    loader_cfg.dataset = build_dataset(loader_cfg.dataset, 'train')
    loader_cfg.collate_fn = sample_check(model, collate=collate_of(loader_cfg))
    loader_cfg.sampler = dict(type='DefaultSampler', shuffle=True)
    loader_cfg.drop_last = False
    loader_cfg.persistent_workers = False
    return Runner.build_dataloader(loader_cfg, seed=seed)


def collect(model, loader, size, seed, max_images):
    """Run the train set through the model once.

    Returns:
        tuple[Reservoir, int, list[str]]: Samples of every class, number of images, class names.
    """
    head = model.decode_head
    total = min(len(loader.dataset), max_images or len(loader.dataset))
    reservoir = Reservoir(head.num_classes, size, head.bank.channels, seed)
    progress, seen = ProgressBar(total, file=sys.stderr), 0
    for batch in loader:
        data = model.data_preprocessor(batch, training=True)
        samples = data['data_samples'][: total - seen]
        vectors = head.memory_vectors(model.extract_feat(data['inputs'][: len(samples)]))
        labels = batch_labels(samples, head.num_classes, head.ignore_index)
        classes = labels_at_feature_size(labels, vectors.shape[1:3]).flatten()
        known = classes != head.ignore_index
        reservoir.add(vectors.flatten(0, 2)[known].float().cpu(), classes[known].long().cpu())
        seen += len(samples)
        progress.update(len(samples))
        if seen >= total:
            break
    print(file=sys.stderr)
    return reservoir, seen, list(loader.dataset.metainfo['classes'])


def choose(reservoir, strategy, num_centers, seed):
    """Start values [K, N, C], and which of them there are, [K, N]."""
    num_classes, _, channels = reservoir.vectors.shape
    centers = torch.zeros(num_classes, num_centers, channels)
    filled = torch.zeros(num_classes, num_centers, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    for c in range(num_classes):
        vectors = reservoir.sample(c)
        if not len(vectors):
            continue
        if strategy == 'cluster':
            vectors = spherical_kmeans(vectors, num_centers, generator)
        centers[c, : len(vectors)] = vectors
        filled[c, : len(vectors)] = True
    return centers, filled


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config of a head with a memory')
    parser.add_argument('out', type=Path, help='file to write')
    parser.add_argument(
        '--strategy',
        choices=['random', 'cluster'],
        default='random',
        help='random pixels, or centres of k-means by cosine (default: random)',
    )
    parser.add_argument(
        '--centers',
        type=positive,
        metavar='N',
        help="vectors for each class (default: what the config's bank has)",
    )
    parser.add_argument(
        '--samples',
        type=positive,
        default=1000,
        metavar='M',
        help='pixels of each class that --strategy cluster looks at; K * M * C * 4 '
        'bytes of memory (default: 1000)',
    )
    parser.add_argument('--seed', type=seed, default=0, help='(default: 0)')
    parser.add_argument('--checkpoint', help='checkpoint of the whole model to take weights from')
    parser.add_argument(
        '--max-images',
        type=positive,
        metavar='N',
        help='use N images at most, drawn at random (default: all)',
    )
    parser.add_argument('--device', type=device, help='(default: a GPU where there is one)')
    parser.add_argument('--overwrite', action='store_true', help='replace the file if it exists')
    add_overrides(parser)
    args = parser.parse_args(argv)
    if args.out.exists() and not args.overwrite:
        parser.error(f'{args.out} exists; pass --overwrite to replace it')
    return args


@tool
@torch.no_grad()
def main(argv=None):
    args = parse_args(argv)
    refuse_same(args.out, [args.config, args.checkpoint])
    make_folder(args.out.parent)
    cfg = load_config(args.config, args.cfg_options, needs=('model', 'train_dataloader'))
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    check_head(cfg, args.config)
    device = args.device or get_device()
    checkpoint = None if args.checkpoint is None else checked_checkpoint(args.checkpoint)
    if checkpoint is None and not is_pretrained(cfg):
        print(
            'warning: the backbone is not pretrained and no --checkpoint is given: training will '
            'start from another random backbone, to which these vectors mean nothing',
            file=sys.stderr,
        )
    MMLogger.get_current_instance().setLevel('WARNING')  # not every weight's initialisation
    set_random_seed(args.seed)
    with setting_up(cfg, args.config, args.cfg_options):
        model = build_model(cfg, checkpoint, device)
        loader = build_loader(cfg, args.seed, model)
    num_centers = args.centers or model.decode_head.bank.class_vectors().shape[1]
    size = num_centers if args.strategy == 'random' else max(args.samples, num_centers)
    reservoir, num_images, classes = collect(model, loader, size, args.seed, args.max_images)
    centers, filled = choose(reservoir, args.strategy, num_centers, args.seed)

    origin = dict(
        strategy=args.strategy,
        seed=args.seed,
        images=num_images,
        config=Path(args.config).name,
        checkpoint=None if checkpoint is None else Path(checkpoint).name,
    )
    InitialMemory(
        centers, filled, reservoir.counts, classes, model.decode_head.embedding_state(), origin
    ).save(args.out)
    print(
        f'{args.out}: {num_centers} for each of {len(centers)} classes, {centers.shape[2]} '
        f'channels, from {int(reservoir.counts.sum())} pixels of {num_images} images'
    )
    for text, rows in (
        ('never seen', ~filled.any(dim=1)),
        ('with fewer vectors than asked for', filled.any(1) & ~filled.all(1)),
    ):
        names = [classes[c] for c in rows.nonzero()[:, 0].tolist()]
        if names:
            print(f'{len(names)} classes {text}: {", ".join(names)}')
    if not filled.any(dim=1).all():
        print(why_never_seen())


if __name__ == '__main__':
    main()
