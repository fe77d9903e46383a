"""Side-by-side predictions: scores by loops, cases shown, and a page that needs no other file."""

import base64
import json
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from mmseg_cmdl.analysis import ExaminedModel, class_iou, confusion_matrix, mean_iou, pixel_accuracy
from mmseg_cmdl.visualization import color_errors
from tests.analysis.conftest import IMAGES, NUM_CLASSES, tool

compare = tool('compare_predictions')


def test_scores_by_hand():
    truth = np.array([[0, 0, 1, 255]])
    prediction = np.array([[0, 2, 1, 1]])
    confusion = confusion_matrix(truth, prediction, 4)
    np.testing.assert_array_equal(class_iou(confusion), [50, 100, 0, np.nan])
    assert mean_iou(confusion) == 50
    assert pixel_accuracy(confusion) == pytest.approx(200 / 3)
    empty = confusion_matrix(np.full((2, 2), 255), np.zeros((2, 2), int), 4)
    assert mean_iou(empty) is pixel_accuracy(empty) is None


def test_worst_then_best_each_once():
    values = {0: 5.0, 1: 1.0, 2: None, 3: 9.0, 4: 7.0}
    assert compare.choose(values, range(5), 2, 1) == ([1, 0, 3], 2)
    assert compare.choose(values, range(5), 3, 3) == ([1, 0, 4, 3], 3)
    assert compare.choose({0: 1.0, 1: 1.0}, range(2), 1, 0) == ([0], 1)


def test_error_map():
    picture = color_errors(np.array([[0, 1, 255]]), np.array([[0, 2, 1]]))
    assert picture.tolist() == [[[215] * 3, [213, 94, 0], [255] * 3]]


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.images, self.cases, self.links, self.open = [], [], [], []
        self.feed(text)
        assert not self.open, f'left open: {self.open}'

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in ('meta', 'input', 'img', 'br'):
            self.open.append(tag)
        self.links += [attrs[key] for key in ('src', 'href') if key in attrs]
        if tag == 'img':
            data = base64.b64decode(attrs['src'].split(',')[1])
            self.images.append((attrs['alt'], cv2.imdecode(np.frombuffer(data, np.uint8), 1)))
        if attrs.get('class') == 'case':
            self.cases.append(attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope='module')
def compared(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp('predictions')
    arguments = '--names F<1> M --sort gain --worst 2 --best 1 --rows 2'
    compare.main([*trained.pair, *arguments.split(), '--out', str(folder)])
    return folder, json.loads((folder / 'predictions.json').read_text())


def test_every_image_is_scored(trained, compared):
    _, numbers = compared
    for name, pair in (('F<1>', trained.fcn), ('M', trained.mdrl)):
        model, total = ExaminedModel.load(*pair), []
        for index in range(IMAGES):
            example = model.example(index, predict=True)
            scores = []
            for k in range(NUM_CLASSES):
                valid = example.truth != 255
                a, b = (example.truth == k) & valid, (example.prediction == k) & valid
                total.append((k, (a & b).sum(), (a | b).sum()))
                if (a | b).any():
                    scores.append((a & b).sum() / (a | b).sum())
            assert numbers['images'][index][name]['mIoU'] == pytest.approx(
                100 * np.mean(scores), rel=1e-4
            )
        sums = [np.sum([t[1:] for t in total if t[0] == k], axis=0) for k in range(NUM_CLASSES)]
        assert numbers['totals'][name]['mIoU'] == pytest.approx(
            100 * np.mean([i / u for i, u in sums if u]), rel=1e-4
        )


def test_the_page_shows_the_cases_and_needs_nothing_else(trained, compared):
    folder, numbers = compared
    gains = [n['M']['mIoU'] - n['F<1>']['mIoU'] for n in numbers['images']]
    order = sorted(range(IMAGES), key=gains.__getitem__)
    assert numbers['worst'] == order[:2]
    assert numbers['best'] == order[-1:]
    text = (folder / 'predictions.html').read_text()
    page = Page(text)
    assert all(link.startswith('data:image/') for link in page.links)
    assert 'http' not in text.replace('http-equiv', '')
    assert [float(case['data-d1']) for case in page.cases] == pytest.approx(
        [gains[i] for i in numbers['worst'] + numbers['best']], abs=1e-3
    )
    titles = ['image', 'ground truth', 'F<1>', 'errors of F<1>', 'M', 'errors of M']
    assert [alt for alt, _ in page.images] == 3 * titles
    model = ExaminedModel.load(*trained.mdrl)
    example = model.example(order[0], predict=True)
    by_name = dict(page.images[:6])
    palette = np.array(model.palette)
    np.testing.assert_array_equal(by_name['M'][..., ::-1], palette[example.prediction])
    wrong = (by_name['errors of M'][..., ::-1] == (213, 94, 0)).all(-1)
    np.testing.assert_array_equal(
        wrong, (example.truth != example.prediction) & (example.truth != 255)
    )


def test_chosen_images_and_mistakes(trained, tmp_path):
    arguments = [*trained.fcn, '--out', str(tmp_path)]
    compare.main([*arguments, '--show', '3', '--max-images', '1'])
    numbers = json.loads((tmp_path / 'predictions.json').read_text())
    assert numbers['best'] == [3]
    assert [entry['index'] for entry in numbers['images']] == [0, 3]
    (score,) = (n['mIoU'] for n in numbers['totals'].values())
    (own,) = (v['mIoU'] for v in numbers['images'][0].values() if isinstance(v, dict))
    iou = [v for v in next(iter(numbers['totals'].values()))['IoU'].values() if v is not None]
    assert score == pytest.approx(own) == pytest.approx(np.mean(iou), rel=1e-4)
    with pytest.raises(SystemExit):
        compare.main([*arguments, '--sort', 'gain'])
    with pytest.raises(SystemExit, match='there is no image 7'):
        compare.main([*arguments, '--show', '7'])
