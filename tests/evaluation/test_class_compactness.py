import json
import math

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, MODELS

from mmseg_cmdl.evaluation import ClassCompactness, measure_compactness
from tests import tiny
from tests.tools.test_train_test import own_folder, run, tool  # noqa: F401


def test_equals_loops():
    g = torch.Generator().manual_seed(0)
    features = torch.randn(3, 4, 5, 6, generator=g) * 2 + 1
    labels = torch.randint(0, 4, (3, 10, 12), generator=g)
    labels[labels == 2] = 255
    meter = ClassCompactness(4)
    for x, y in zip(features.split(2), labels.split(2)):
        meter.update(x, y)
    got = meter.compute()

    pixels = {0: [], 1: [], 3: []}
    for b in range(3):
        for y in range(5):
            for x in range(6):
                label = int(labels[b, 2 * y, 2 * x])
                if label != 255:
                    pixels[label].append(features[b, :, y, x].double())
    every = [row for rows in pixels.values() for row in rows]
    means = {label: sum(rows) / len(rows) for label, rows in pixels.items()}
    within = sum(
        ((row - means[label]) ** 2).sum() for label, rows in pixels.items() for row in rows
    )
    mean = sum(every) / len(every)
    overall = sum(((row - mean) ** 2).sum() for row in every)
    cosines = [
        torch.nn.functional.cosine_similarity(means[i], means[j], dim=0)
        for i in means
        for j in means
        if i != j
    ]
    assert (got.pixels, got.classes) == (len(every), 3)
    assert got.intra_variance == pytest.approx(float(within / (len(every) * 4)))
    assert got.relative_variance == pytest.approx(float(within / overall))
    assert got.center_similarity == pytest.approx(float(sum(cosines) / 6))
    assert got.largest_similarity == pytest.approx(float(max(cosines)))


def test_one_class_has_nothing_to_compare_with():
    meter = ClassCompactness(3)
    with pytest.raises(ValueError, match='two classes'):
        meter.compute()
    meter.update(torch.randn(1, 2, 3, 3), torch.zeros(1, 3, 3, dtype=torch.long))
    with pytest.raises(ValueError, match='two classes'):
        meter.compute()


SIZE = 64


def _dataset(split, length):
    init_default_scope('mmseg')
    return DATASETS.build(
        dict(
            type='SyntheticScenesDataset',
            split=split,
            length=length,
            size=(SIZE, SIZE),
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations'),
                dict(type='PackSegInputs'),
            ],
        )
    )


def _model(kind, num_classes, **options):
    torch.manual_seed(0)
    norm = dict(type='BN')
    model = MODELS.build(
        dict(
            type=kind,
            data_preprocessor=dict(
                type='SegDataPreProcessor',
                mean=[120.0] * 3,
                std=[60.0] * 3,
                size=(SIZE, SIZE),
                seg_pad_val=255,
            ),
            backbone=dict(
                type='ResNetV1c',
                depth=18,
                stem_channels=8,
                base_channels=16,
                num_stages=2,
                out_indices=(1,),
                strides=(1, 2),
                dilations=(1, 1),
                norm_cfg=norm,
            ),
            decode_head=dict(
                type='FCNHead',
                in_channels=32,
                in_index=0,
                channels=16,
                num_convs=1,
                concat_input=False,
                num_classes=num_classes,
                norm_cfg=norm,
                dropout_ratio=0.0,
                align_corners=False,
            ),
            train_cfg=dict(),
            test_cfg=dict(mode='whole'),
            **options,
        )
    )
    model.init_weights()
    return model


def _train(model, data, iterations, batch=4):
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    model.train()
    for step in range(iterations):
        items = [data[(step * batch + i) % len(data)] for i in range(batch)]
        prepared = model.data_preprocessor(pseudo_collate(items), True)
        total, _ = model.parse_losses(model.loss(**prepared))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return model


def test_car_makes_classes_compact_and_their_centers_dissimilar(capsys):
    """The same training with and without CAR, measured on scenes that neither has seen."""
    data, unseen = _dataset('train', 32), _dataset('val', 8)
    data = [data[i] for i in range(len(data))]
    batches = [pseudo_collate([unseen[i]]) for i in range(len(unseen))]
    num_classes = len(unseen.metainfo['classes'])
    results = {}
    for name, kind, options in (('plain', 'EncoderDecoder', {}), ('CAR', 'CAREncoderDecoder', {})):
        model = _train(_model(kind, num_classes, **options), data, 40)
        results[name] = measure_compactness(model, batches)
    with capsys.disabled():
        for name, result in results.items():
            print(f'\n{name}: {result}', end='')
    plain, car = results['plain'], results['CAR']
    assert car.intra_variance < 0.8 * plain.intra_variance
    assert car.relative_variance < plain.relative_variance
    assert car.center_similarity < plain.center_similarity


def test_tool_compares_runs(tiny_data, tmp_path, capsys):
    train, compactness = tool('train'), tool('class_compactness')
    plain = tiny.write_config(tmp_path / 'tiny_fcn.py', tiny_data, iterations=4, interval=4)
    config = tmp_path / 'tiny_car.py'
    config.write_text("_base_ = 'tiny_fcn.py'\nmodel = dict(type='CAREncoderDecoder')\n")
    run(train.main, plain, '--work-dir', tmp_path / 'work')
    checkpoint = tmp_path / 'work' / 'iter_4.pth'
    compactness.main(
        [
            str(plain),
            str(checkpoint),
            str(config),
            str(checkpoint),
            '--device',
            'cpu',
            '--json',
            'out.json',
        ]
    )
    printed = capsys.readouterr().out
    assert 'tiny_fcn' in printed
    assert 'mean cosine of centres' in printed
    first, second = json.loads((tmp_path / 'out.json').read_text())
    assert first['pixels'] > 20
    assert first['classes'] == 3
    for key in ('intra_variance', 'relative_variance', 'center_similarity'):
        assert math.isclose(first[key], second[key], rel_tol=1e-4)  # the same checkpoint
    with pytest.raises(SystemExit):
        compactness.main([str(plain)])
    assert 'pairs of CONFIG and CHECKPOINT' in capsys.readouterr().err
