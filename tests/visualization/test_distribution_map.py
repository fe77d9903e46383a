import numpy as np

from mmseg_cmdl.visualization import color_distributions, color_labels

PALETTE = [(200, 0, 0), (0, 100, 50)]


def test_labels_take_their_colors_and_anything_else_is_ignored():
    picture = color_labels(np.array([[0, 1], [255, -1]]), PALETTE)
    assert picture.dtype == np.uint8
    assert picture.tolist() == [[[200, 0, 0], [0, 100, 50]], [[255] * 3, [255] * 3]]


def test_distributions_go_from_dark_to_light_around_the_class_color():
    classes = np.array([[1, 1, 1]])
    picture = color_distributions(classes, np.array([[0, 1, 2]]), 3, PALETTE)
    dark, middle, light = picture[0].tolist()
    assert dark == [0, 30, 15]  # 70% towards black
    assert middle == [0, 100, 50]
    assert light == [178, 208, 194]  # 70% to white: 0 + 178.5 (to even), 100 + 108.5, 50 + 143.5


def test_one_distribution_is_the_class_color():
    picture = color_distributions(np.zeros((2, 2), int), np.zeros((2, 2), int), 1, PALETTE)
    assert (picture == PALETTE[0]).all()
