"""A picture seen through windows, and the distributions that it is made of."""

import numpy as np
import pytest
import torch

from mmseg_cmdl.analysis import ExaminedModel, main_distributions, nearest_places, see_whole
from mmseg_cmdl.analysis.whole_picture import WholePicture

SIDE, STRIDE = 64, 8


@pytest.fixture(scope='module')
def model(trained):
    return ExaminedModel.load(*trained.mdrl)


@pytest.fixture(scope='module')
def picture():
    """84 x 110 pixels: neither a number of windows nor of features."""
    return np.random.default_rng(0).integers(0, 255, (84, 110, 3)).astype(np.uint8)


def look(model, pixels):
    """Logits [K, h, w] and unit vectors [Z, h, w] of a picture of one window, by hand."""
    normalize = model.model.data_preprocessor
    image = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32))
    image = (image - normalize.mean.view(3, 1, 1)) / normalize.std.view(3, 1, 1)
    with torch.no_grad():
        maps = model.model.extract_feat(image[None])
        embeddings = model.head.embed(model.head.bottleneck(maps[-1]))
        return model.head(maps)[0], embeddings[0].permute(2, 0, 1)


def test_one_window_is_the_model_itself(model, picture):
    whole = see_whole(model, picture[:SIDE, :SIDE], window=SIDE)
    logits, embeddings = look(model, picture[:SIDE, :SIDE])
    assert (whole.size, whole.stride) == ((SIDE, SIDE), STRIDE)
    torch.testing.assert_close(whole.logits, logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whole.embeddings, embeddings.permute(1, 2, 0), atol=1e-5, rtol=1e-5)


def test_windows_that_overlap_are_averaged_by_their_distance_from_the_border(model, picture):
    seen = []
    whole = see_whole(model, picture, window=SIDE, track=lambda items, n: seen.append(n) or items)
    # 84 x 110 go on to 88 x 112; windows start at features 0, 3 (the last) and at 0, 4, 6
    padded = np.pad(picture, [(0, 4), (0, 2), (0, 0)], mode='edge')
    assert seen == [6]
    ramp = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(8) / 8) + 1e-3
    weight = torch.from_numpy(np.outer(ramp, ramp))
    sums = torch.zeros(whole.logits.shape[0] + whole.embeddings.shape[2], 11, 14).double()
    weights = torch.zeros(11, 14).double()
    for top in (0, 3):
        for left in (0, 4, 6):
            y, x = top * STRIDE, left * STRIDE
            own = torch.cat(look(model, padded[y : y + SIDE, x : x + SIDE])).double()
            sums[:, top : top + 8, left : left + 8] += weight * own
            weights[top : top + 8, left : left + 8] += weight
    num_classes = len(whole.logits)
    expected = sums[:num_classes] / weights
    torch.testing.assert_close(whole.logits.double(), expected, atol=1e-4, rtol=1e-4)
    vectors = sums[num_classes:] / sums[num_classes:].norm(dim=0)
    torch.testing.assert_close(
        whole.embeddings.double().permute(2, 0, 1), vectors, atol=1e-4, rtol=1e-4
    )
    assert whole.enlarged(whole.logits).shape == (num_classes, 84, 110)


def test_a_head_without_distributions_is_refused(trained, model, picture):
    with pytest.raises(ValueError, match='needs an MDRLHead'):
        see_whole(ExaminedModel.load(*trained.fcn), picture, window=SIDE)
    with pytest.raises(ValueError, match='multiple of 2'):
        see_whole(model, picture, window=SIDE + STRIDE)


def angles(*degrees):
    radians = torch.tensor(degrees, dtype=torch.float32).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=-1)


@pytest.fixture
def plane():
    """One row of ten features, six of class 0, four of class 1; class 2 has none."""
    logits = torch.zeros(3, 1, 10)
    logits[0, :, :6] = logits[1, :, 6:] = 1
    embeddings = angles([0, 1, 2, 31, 33, 92, 200, 201, 202, 203])
    return WholePicture(logits, embeddings, (8, 80), 8)


BANK = torch.stack([angles(0, 30, 90, 300), angles(200, 20, 100, 110), angles(0, 1, 2, 3)])


def test_distributions_with_most_pixels_from_dark_to_light(plane):
    # features 0 to 2 are bright, 3 and 4 dark
    brightness = np.repeat([[200, 200, 200, 10, 20, 90, 0, 0, 0, 0]], 8, axis=1).repeat(8, axis=0)
    first, second, third = main_distributions(plane, BANK, brightness, least_share=0.2)
    assert first.indices == [1, 0]
    assert first.shares == pytest.approx([2 / 6, 3 / 6])
    # the pixel at 92 degrees belongs to one with too small a share: the nearest of the others
    assert first.own[0, :6].tolist() == [1, 1, 1, 0, 0, 0]
    # of vectors between 2 and 31 degrees those up to 15 degrees, that is up to column 23
    assert first.large[:, 4:44].max(axis=0).tolist() == [1] * 20 + [0] * 20
    np.testing.assert_allclose(
        first.scores[:, 0, 3], np.cos(np.deg2rad([1, 31])), rtol=0, atol=1e-6
    )
    assert (second.indices, second.shares) == ([0], [1.0])
    assert (third.indices, third.shares) == ([], [])
    (most, *_) = main_distributions(plane, BANK, brightness, least_share=0.2, most=1)
    assert most.indices == [0]
    (every, *_) = main_distributions(plane, BANK, brightness, least_share=0.01)
    assert every.indices == [1, 2, 0]


def test_nearest_places_are_apart_and_where_they_may_be():
    scores = np.array([[9, 8, 7, 6, 5.0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]])
    among = np.ones(scores.shape, bool)
    among[0, 0] = False
    assert nearest_places(scores, among, 2, 1) == [(0, 1), (0, 3)]
    assert nearest_places(scores, among, 9, 4) == [(0, 1)]
    assert nearest_places(scores, ~among, 3, 1) == [(0, 0)]
    assert nearest_places(scores, among & False, 3, 1) == []
