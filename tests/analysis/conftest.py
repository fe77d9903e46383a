"""Two small models on synthetic scenes, saved as a user has them: config and checkpoint."""

import json
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, MODELS

from mmseg_cmdl.shipped_configs import configs_folder
from tests.paths import TOOLS, load_script

NUM_CLASSES, NUM_DISTRIBUTIONS, IMAGES = 8, 3, 4


def tool(name):
    """A module of tools/analysis."""
    return load_script(TOOLS / 'analysis' / f'{name}.py')


def run_tool(name, files, out, arguments=''):
    """Runs it on configs and checkpoints; gives the numbers that it writes."""
    tool(name).main([*files, *arguments.split(), '--out', str(out)])
    return json.loads((out / f'{name}.json').read_text())


def small_config(path, seed=0):
    cfg = Config.fromfile(path)
    cfg.model.backbone.update(base_channels=4, stem_channels=4)
    cfg.model.decode_head.update(in_channels=32, channels=16)
    cfg.model.auxiliary_head.update(in_channels=16, channels=8)
    if cfg.model.decode_head.type == 'MDRLHead':
        cfg.model.decode_head.bank = dict(
            type='DistributionBank', num_distributions=NUM_DISTRIBUTIONS, momentum=0.999
        )
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.update(length=IMAGES, size=(64, 96))
        for step in loader.dataset.pipeline:
            if step['type'] == 'Resize':
                step['scale'] = (96, 64)
    return cfg


def settle(model, dataset, batches=3):
    """Running statistics of the norms from real images, so that features in eval mode differ."""
    model.train()
    with torch.no_grad():
        for _ in range(batches):
            data = model.data_preprocessor(
                pseudo_collate([dataset[i] for i in range(len(dataset))]), False
            )
            features = model.extract_feat(data['inputs'])
            model.decode_head(features)
            if hasattr(model.decode_head, 'embed'):
                model.decode_head.embed(model.decode_head.bottleneck(features[-1]))
    model.eval()


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
    """name: (config, checkpoint) of an untrained FCN and MDRL-FCN.

    The distributions of the bank are embeddings of real pixels, one of each class doubled.
    """
    folder = tmp_path_factory.mktemp('models')
    init_default_scope('mmseg')
    out = {}
    for name, stem in (('fcn', 'baselines/fcn_r18s'), ('mdrl', 'mdrl/mdrl_fcn_r18s')):
        cfg = small_config(configs_folder() / f'{stem}-d8_1xb8-demo_synthetic-128x128.py')
        torch.manual_seed(1)
        model = MODELS.build(cfg.model)
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
        settle(model, dataset)
        if name == 'mdrl':
            head = model.decode_head
            with torch.no_grad():
                data = model.data_preprocessor(pseudo_collate([dataset[0]]), False)
                pixels = head.embed(head.bottleneck(model.extract_feat(data['inputs'])[-1]))
                pixels = pixels.flatten(0, 2)
                rows = torch.arange(NUM_CLASSES * NUM_DISTRIBUTIONS) * 5 % len(pixels)
                bank = pixels[rows].view(NUM_CLASSES, NUM_DISTRIBUTIONS, -1)
                bank[2, 1] = bank[2, 0]
                head.bank.distributions.copy_(bank)
        config, checkpoint = folder / f'{name}.py', folder / f'{name}.pth'
        cfg.dump(config)
        torch.save(
            dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dataset.metainfo)),
            checkpoint,
        )
        out[name] = (str(config), str(checkpoint))
    return SimpleNamespace(**out, pair=[*out['fcn'], *out['mdrl']])
