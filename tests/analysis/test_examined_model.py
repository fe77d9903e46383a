"""Images, predictions, features and labels of them, one image at a time."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from PIL import Image

from mmseg_cmdl.analysis import ExaminedModel, chosen_classes
from mmseg_cmdl.analysis.examined_model import labels_of_features
from mmseg_cmdl.errors import InputError
from tests import tiny
from tests.analysis.conftest import IMAGES


def test_labels_lie_where_their_features_are():
    truth = np.arange(4 * 6).reshape(4, 6)
    # half-size image, padded by a quarter to the right and not below; two pixels per feature
    labels = labels_of_features(truth, (2, 3), (2, 4), (2, 4))
    assert labels.tolist() == [[0, 2, 4, 255], [12, 14, 16, 255]]
    assert labels_of_features(truth, (4, 6), (4, 6), (2, 2)).tolist() == [[0, 3], [12, 15]]


def test_an_example_is_what_the_model_gives(trained):
    model = ExaminedModel.load(*trained.mdrl)
    example = model.example(3, 'embedding', predict=True)
    data = pseudo_collate([model.dataset[3]])
    sample = model.model.test_step(data)[0]
    np.testing.assert_array_equal(example.prediction, sample.pred_sem_seg.data[0].numpy())
    scene = model.dataset.render(3)
    np.testing.assert_array_equal(example.image, scene.image)
    np.testing.assert_array_equal(example.truth, scene.label)
    assert example.features.shape[:2] == example.labels.shape == (8, 12)
    assert example.stride == (8, 8)
    np.testing.assert_array_equal(example.labels, scene.label[::8, ::8])
    inputs = model.model.data_preprocessor(data, False)['inputs']
    with torch.no_grad():
        pixels = model.head.bottleneck(model.model.extract_feat(inputs)[-1])
        torch.testing.assert_close(example.features, model.head.embed(pixels)[0])


@pytest.mark.parametrize('name', ['fcn', 'mdrl'])
def test_classifier_features_give_the_logits(trained, name):
    model = ExaminedModel.load(*getattr(trained, name))
    example = model.example(0, 'classifier')
    data = model.model.data_preprocessor(pseudo_collate([model.dataset[0]]), False)
    with torch.no_grad():
        logits = model.model._forward(data['inputs'])
        ours = model.head.conv_seg(example.features.permute(2, 0, 1)[None])
    torch.testing.assert_close(ours, logits)
    backbone = model.example(0, 'backbone').features
    torch.testing.assert_close(
        backbone, model.model.extract_feat(data['inputs'])[-1][0].permute(1, 2, 0)
    )


def test_classifier_features_under_car_are_behind_its_linear_conv(trained):
    model = ExaminedModel.load(*trained.fcn, options={'model.type': 'CAREncoderDecoder'})
    with torch.no_grad():
        model.model.car.linear.weight.mul_(2)
    features = model.example(0, 'classifier').features
    torch.testing.assert_close(
        features, 2 * ExaminedModel.load(*trained.fcn).example(0, 'classifier').features
    )


def test_padding_is_cut_off(trained):
    options = {'model.data_preprocessor.test_cfg': dict(size_divisor=80)}  # 64x96 to 80x160
    model = ExaminedModel.load(*trained.fcn, options=options)
    example = model.example(1, 'classifier')
    assert example.features.shape[:2] == example.labels.shape == (8, 12)
    np.testing.assert_array_equal(example.labels, example.truth[::8, ::8])


def test_training_images_come_without_augmentation(trained):
    model = ExaminedModel.load(*trained.fcn, split='train')
    for index in (0, 0, 3):
        np.testing.assert_array_equal(model.example(index).image, model.dataset.render(index).image)
    inner = Config.fromfile(trained.fcn[0]).train_dataloader.dataset
    wrapped = dict(type='RepeatDataset', times=2, dataset=inner, _delete_=True)
    repeated = ExaminedModel.load(
        *trained.fcn, split='train', options={'train_dataloader.dataset': wrapped}
    )
    image = repeated.example(IMAGES + 3).image
    np.testing.assert_array_equal(image, model.dataset.render(3).image)


@pytest.mark.parametrize(('call', 'message'), [
    (lambda m: m.example(IMAGES), r'no image 4: the split of fcn has images 0 to 3'),
    (lambda m: m.example(0, 'embedding'), 'fcn has a FCNHead, which embeds no pixels'),
    (lambda m: m.bank('the map'), 'the map needs a memory bank'),
])  # fmt: skip
def test_what_a_model_lacks_is_named(trained, call, message):
    with pytest.raises(InputError, match=message):
        call(ExaminedModel.load(*trained.fcn))


def test_an_image_without_labels_is_named(trained):
    model = ExaminedModel.load(
        *trained.fcn,
        options={
            'val_dataloader.dataset.pipeline': [
                dict(type='LoadImageFromFile'),
                dict(type='PackSegInputs'),
            ]
        },
    )
    with pytest.raises(InputError, match=r'000000\.png comes without labels: put LoadAnnotations'):
        model.example(0)


@pytest.mark.parametrize('fault', ['label', 'gone', 'cut', 'size'])
def test_annotations_that_cannot_be_used_are_named(fault, tmp_path):
    """As in training; figures left out labels that are no class, and a cut file was a traceback."""
    root = tiny.write_dataset(tmp_path / 'data')
    config = tiny.write_config(tmp_path / 'tiny.py', root)
    init_default_scope('mmseg')
    state = MODELS.build(Config.fromfile(config).model).state_dict()
    torch.save(dict(state_dict=state), tmp_path / 'model.pth')
    model = ExaminedModel.load(config, tmp_path / 'model.pth')
    assert len(list(model.examples(predict=True))) == 2
    annotation = root / 'annotations' / 'val' / '1.png'
    said = tiny.spoil(annotation, fault)
    with pytest.raises(InputError, match=said) as error:
        list(model.examples(features='classifier'))
    assert str(annotation) in str(error.value)


def test_labels_that_a_metric_leaves_out_are_no_fault(tmp_path):
    root = tiny.write_dataset(tmp_path / 'data')
    config = tiny.write_config(tmp_path / 'tiny.py', root)
    annotation = root / 'annotations' / 'val' / '1.png'
    label = np.array(Image.open(annotation))
    label[1] = 254
    Image.fromarray(label).save(annotation)
    init_default_scope('mmseg')
    cfg = Config.fromfile(config)
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), tmp_path / 'model.pth')
    options = {'val_evaluator.ignore_index': 254}
    model = ExaminedModel.load(config, tmp_path / 'model.pth', options=options)
    truth = model.example(1).truth
    assert (truth[:2] == 255).all()
    assert set(np.unique(truth[2:])) <= {0, 1, 2}


def test_classes_by_name_or_number():
    assert chosen_classes(['car', '0'], ['road', 'car']) == [1, 0]
    assert chosen_classes(None, ['road', 'car']) == [0, 1]
    with pytest.raises(InputError, match="no class 'bike'; there are: road, car"):
        chosen_classes(['bike'], ['road', 'car'])
