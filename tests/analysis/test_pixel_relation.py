"""Similarity of one pixel with all others, and how a pixel is named."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmseg_cmdl.analysis import ExaminedModel, feature_at, pixel_relation
from mmseg_cmdl.errors import InputError
from tests.analysis.conftest import tool

relation = tool('pixel_relation')


def test_relation_by_hand():
    features = torch.tensor([[[3.0, 4], [6, 8], [4, -3]]])
    assert pixel_relation(features, (0, 0), 'dot').tolist() == [[25, 50, 0]]
    torch.testing.assert_close(pixel_relation(features, (0, 0)), torch.tensor([[1.0, 1, 0]]))
    with pytest.raises(ValueError, match="kind must be 'cosine' or 'dot'"):
        pixel_relation(features, (0, 0), 'l2')


def test_feature_of_a_pixel():
    assert feature_at((0, 15), (16, 16), (2, 2), (8, 8)) == (0, 1)
    assert feature_at((7, 8), (16, 16), (2, 2), (8, 8)) == (0, 1)
    assert feature_at((12, 12), (13, 13), (2, 2), (8, 8)) == (1, 1)
    with pytest.raises(
        InputError, match='pixel x=16 y=3 is outside of the image, which is 16 wide'
    ):
        feature_at((3, 16), (16, 16), (2, 2), (8, 8))


def test_deepest_pixel_lies_in_the_middle():
    mask = np.zeros((9, 12), bool)
    mask[2:7, 3:8] = mask[0, 11] = True
    assert relation.deepest_pixel(mask) == (4, 5)
    assert relation.deepest_pixel(np.ones((3, 3), bool)) == (1, 1)


def test_the_command_relates_features_of_both_models(trained, tmp_path, capsys):
    arguments = '--names F M --image 2 --pixel 70 9 --pixel-of road 0 --features backbone'
    relation.main([*trained.pair, *arguments.split(), '--out', str(tmp_path)])
    arrays = np.load(tmp_path / 'pixel_relation.npz')
    assert arrays['names'].tolist() == ['F', 'M']
    assert arrays['pixels'][0].tolist() == [9, 70]
    for number, pair in enumerate((trained.fcn, trained.mdrl)):
        model = ExaminedModel.load(*pair)
        truth = model.dataset.render(2).label
        features = F.normalize(model.example(2, 'backbone').features, dim=-1).numpy()
        for i, (y, x) in enumerate(arrays['pixels'].tolist()):
            if i:
                assert truth[y, x] == (2, 0)[i - 1]  # road, then class number 0
            np.testing.assert_allclose(
                arrays[f'{number}_{i}'], features @ features[y // 8, x // 8], atol=1e-5
            )
    assert 'with its class' in capsys.readouterr().out
    assert (tmp_path / 'pixel_relation.png').stat().st_size > 10000


def test_pixels_that_are_not_there(trained, tmp_path, capsys):
    arguments = [*trained.fcn, '--out', str(tmp_path)]
    with pytest.raises(SystemExit):
        relation.main(arguments)
    assert 'name a pixel: --pixel X Y' in capsys.readouterr().err
    with pytest.raises(
        SystemExit, match='x=96 y=0 is outside of the image, which is 96 wide and 64'
    ):
        relation.main([*arguments, '--pixel', '96', '0'])
    model = ExaminedModel.load(*trained.fcn)
    present = [set(np.unique(model.dataset.render(i).label)) - {255} for i in range(4)]
    index, absent = next((i, k) for i, p in enumerate(present) for k in range(8) if k not in p)
    with pytest.raises(
        SystemExit, match=f'image {index} has no {model.classes[absent]}; it has: sky'
    ):
        relation.main([*arguments, '--image', str(index), '--pixel-of', str(absent)])
