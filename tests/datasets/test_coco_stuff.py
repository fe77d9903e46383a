"""COCOStuff182Dataset: files of MMSegmentation's 171 classes, read as ids among all 182."""

import cv2
import numpy as np
import pytest
from mmengine.registry import init_default_scope
from mmseg.datasets import COCOStuffDataset

from mmseg_cmdl.datasets import COCOStuff182Dataset


def test_the_labelled_classes_keep_their_names_and_the_official_ids():
    """COCO-Stuff's own ids, 1 to 182, less one; some of them from its label list."""
    classes = COCOStuff182Dataset.METAINFO['classes']
    assert len(classes) == len(set(classes)) == len(COCOStuff182Dataset.METAINFO['palette']) == 182
    mapped = COCOStuff182Dataset.get_label_map()
    for index, name in enumerate(COCOStuffDataset.METAINFO['classes']):
        assert classes[mapped[index]] == name
    official = {'person': 1, 'stop sign': 13, 'street sign': 12, 'toothbrush': 90, 'banner': 92}
    official.update({'sky-other': 157, 'wood': 182, 'hair brush': 91, 'blender': 83})
    for name, number in official.items():
        assert classes.index(name) == number - 1


def test_labels_are_renumbered_when_loaded(tmp_path):
    init_default_scope('mmseg')
    for folder in ('images', 'annotations'):
        (tmp_path / folder).mkdir()
    # 0 is no label, 1 to 171 the classes in their order
    labels = np.arange(172, dtype=np.uint8).reshape(4, 43)
    cv2.imwrite(str(tmp_path / 'images' / 'one.jpg'), np.zeros((4, 43, 3), np.uint8))
    cv2.imwrite(str(tmp_path / 'annotations' / 'one_labelTrainIds.png'), labels)
    dataset = COCOStuff182Dataset(
        data_root=str(tmp_path),
        data_prefix=dict(img_path='images', seg_map_path='annotations'),
        reduce_zero_label=True,
        pipeline=[dict(type='LoadAnnotations', reduce_zero_label=True)],
    )
    loaded = dataset[0]['gt_seg_map'].flatten()
    assert loaded[0] == 255
    classes = dataset.metainfo['classes']
    assert [classes[index] for index in loaded[1:]] == list(COCOStuffDataset.METAINFO['classes'])


def test_a_subset_of_classes_and_a_name_that_is_none():
    mapped = COCOStuff182Dataset.get_label_map(['wood', 'person'])
    assert (mapped[0], mapped[170], mapped[5]) == (1, 0, 255)
    with pytest.raises(ValueError, match=r"\['unicorn'\] are not classes of COCO-Stuff"):
        COCOStuff182Dataset.get_label_map(['unicorn'])
