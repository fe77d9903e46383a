"""Usage of distributions and their nearest pixels, by hand and against loops; then the command."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mmseg_cmdl.analysis import (
    DistributionUsage,
    ExaminedModel,
    NearestPatches,
    assign,
    distribution_usage,
    entropy,
)
from tests.analysis.conftest import IMAGES, NUM_CLASSES, NUM_DISTRIBUTIONS, run_tool


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


def test_assignment_is_that_of_a_loop(monkeypatch):
    monkeypatch.setattr(distribution_usage, '_CHUNK_ELEMENTS', 50)  # several chunks
    pixels, bank = unit(4, 6, 5), unit(3, 2, 5)
    classes = torch.randint(0, 3, (4, 6))
    classes[1, 2], classes[3, 3], pixels[0, 0] = 255, -1, math.nan
    got = assign(pixels, classes, bank)
    for y, x in np.ndindex(4, 6):
        k, scores = int(classes[y, x]), bank @ pixels[y, x]
        if k not in (0, 1, 2) or (y, x) == (0, 0):
            assert got.distributions[y, x] == got.nearest_class[y, x] == -1
            assert got.similarity[y, x].isnan()
            continue
        assert got.distributions[y, x] == scores[k].argmax()
        assert got.similarity[y, x] == pytest.approx(scores[k].max().item(), abs=1e-6)
        assert got.nearest_class[y, x] == scores.flatten().argmax() // 2


def test_entropy_goes_from_one_taker_to_even():
    got = entropy(np.array([[4, 0, 0, 0], [3, 3, 3, 3], [2, 2, 0, 0], [0, 0, 0, 0]]))
    np.testing.assert_allclose(got, [0, 1, 0.5, np.nan], atol=1e-12)
    np.testing.assert_array_equal(entropy(np.array([[7], [0]])), [1, np.nan])


def test_usage_dead_and_duplicates_by_hand():
    bank = torch.eye(4).view(1, 4, 4).repeat(2, 1, 1)
    bank[1, 2] = F.normalize(torch.tensor([1.0, 0.1, 0, 0]), dim=0)  # cosine .995 to its first
    usage = DistributionUsage(bank, dead_share=0.5, duplicate_cosine=0.99)
    pixels = torch.eye(4)[[0] * 6 + [1] * 9 + [3]].view(4, 4, 4)
    usage.add(pixels, torch.zeros(4, 4, dtype=torch.int64))
    assert usage.counts.tolist() == [[6, 9, 0, 1], [0] * 4]
    np.testing.assert_allclose(usage.shares[0], [6 / 16, 9 / 16, 0, 1 / 16])
    assert usage.dead.tolist() == [[False, False, True, True], [False] * 4]  # below 0.5 / 4
    assert usage.duplicates() == [[], [(0, 2, pytest.approx(1 / math.sqrt(1.01)))]]
    numbers = usage.numbers(['a', 'b'])
    spread = -sum(p * math.log(p) for p in (6 / 16, 9 / 16, 1 / 16)) / math.log(4)
    assert numbers['classes']['a']['entropy'] == pytest.approx(spread)
    assert numbers['classes']['a']['effective_distributions'] == pytest.approx(4**spread)
    assert numbers['all']['classes_with_pixels'] == 1
    assert numbers['all']['entropy'] == pytest.approx(spread)
    assert np.isnan(numbers['classes']['b']['entropy'])


def test_nearest_pixels_are_the_best_of_each_image():
    bank = unit(2, 2, 3)
    nearest = NearestPatches(2, 2, count=2, size=4)
    expected = {}
    for index in range(5):
        pixels, classes = unit(3, 3, 3), torch.randint(0, 2, (3, 3))
        image = np.random.randint(0, 255, (6, 6, 3), dtype=np.uint8)
        assignment = assign(pixels, classes, bank)
        nearest.add(image, index, classes, assignment, (2, 2))
        padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), constant_values=255)
        best = {}
        for y, x in np.ndindex(3, 3):
            key = int(classes[y, x]), int(assignment.distributions[y, x])
            score = assignment.similarity[y, x].item()
            # centre of the feature is pixel 2 y + 1; two pixels before it, four in all
            patch = padded[4 + 2 * y - 1 : 4 + 2 * y + 3, 4 + 2 * x - 1 : 4 + 2 * x + 3]
            best[key] = max(best.get(key, (-2,)), (score, index, (y, x), patch), key=lambda e: e[0])
        for key, entry in best.items():
            expected.setdefault(key, []).append(entry)
    for key in np.ndindex(2, 2):
        wanted = sorted(expected.get(key, []), key=lambda e: -e[0])[:2]
        got = nearest.of(*key)
        assert [p[:3] for p in got] == [e[:3] for e in wanted]
        for patch, entry in zip(got, wanted):
            np.testing.assert_array_equal(patch.pixels, entry[3])


def test_the_command_counts_every_pixel_of_the_scenes(trained, tmp_path, capsys):
    arguments = '--draw 1 0 --patches 2 --classes car sky'
    numbers = run_tool('distribution_map', trained.mdrl, tmp_path / 'a', arguments)

    model = ExaminedModel.load(*trained.mdrl)
    bank = model.head.bank.distributions
    counts = np.zeros((NUM_CLASSES, NUM_DISTRIBUTIONS), int)
    correct, nearest = 0, {}
    for index in range(IMAGES):
        example = model.example(index, 'embedding')
        for (y, x), label in np.ndenumerate(model.dataset.render(index).label[::8, ::8]):
            if label == 255:
                continue
            scores = bank @ example.features[y, x]
            n = int(scores[label].argmax())
            counts[label, n] += 1
            correct += int(scores.flatten().argmax()) // NUM_DISTRIBUTIONS == label
            key = (label, n)
            nearest[key] = max(nearest.get(key, (-2, 0)), (scores[label, n].item(), index))
    got = [c['pixels_of_distribution'] for c in numbers['classes'].values()]
    assert got == counts.tolist()
    assert numbers['all']['pixels'] == counts.sum()
    assert numbers['all']['nearest_distribution_accuracy'] == pytest.approx(
        100 * correct / counts.sum(), rel=1e-4
    )
    names = list(numbers['classes'])
    for (k, n), (score, index) in nearest.items():
        best = numbers['classes'][names[k]]['nearest_pixels'][n][0]
        assert best['similarity'] == pytest.approx(score, abs=1e-4)
        assert best['image'] == index
    assert [0, 1] in [d[:2] for d in numbers['classes']['road']['duplicates']]
    assert sorted(path.name for path in (tmp_path / 'a').iterdir()) == [
        'class_00_sky.png', 'class_05_car.png', 'distribution_map.json', 'maps.png', 'usage.png'
    ]  # fmt: skip

    run_tool('distribution_map', trained.mdrl, tmp_path / 'b', arguments)
    for file in (tmp_path / 'a').iterdir():  # the same pictures and numbers again
        assert file.read_bytes() == (tmp_path / 'b' / file.name).read_bytes(), file.name
    # the columns of maps.png: image, ground truth
    picture = np.asarray(Image.open(tmp_path / 'a' / 'maps.png').convert('RGB')).reshape(-1, 3)
    colors = {tuple(color) for color in np.unique(picture, axis=0).tolist()}
    assert {
        tuple(model.palette[k]) for k in np.unique(model.dataset.render(1).label) if k != 255
    } <= colors


def test_predictions_can_say_the_class(trained, tmp_path):
    arguments = '--assign-by predictions --max-images 2 --draw 0 --classes sky --patches 0'
    numbers = run_tool('distribution_map', trained.mdrl, tmp_path, arguments)
    model = ExaminedModel.load(*trained.mdrl)
    pixels = np.zeros(NUM_CLASSES, int)
    for index in (0, 2):  # spread evenly over four
        example = model.example(index, predict=True)
        used = example.prediction[::8, ::8][example.truth[::8, ::8] != 255]
        pixels += np.bincount(used, minlength=NUM_CLASSES)
    assert [c['pixels'] for c in numbers['classes'].values()] == pixels.tolist()
    assert numbers['images'] == 2


@pytest.mark.parametrize(('name', 'arguments', 'message'), [
    ('mdrl', '--draw 9', '--draw 9: the split has images 0 to 3'),
    ('mdrl', '--split test --cfg-options test_dataloader=None', 'no test_dataloader'),
    ('fcn', '', 'needs a memory bank, and the head of'),
])  # fmt: skip
def test_mistakes_are_named(trained, tmp_path, name, arguments, message):
    with pytest.raises(SystemExit, match=message):
        run_tool('distribution_map', getattr(trained, name), tmp_path, arguments)
