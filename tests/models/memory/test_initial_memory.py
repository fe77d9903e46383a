"""What a file of start values may hold."""

import pytest
import torch

from mmseg_cmdl.models.memory import InitialMemory


def content(**changes):
    good = dict(
        centers=torch.arange(12.0).reshape(2, 3, 2),
        filled=torch.ones(2, 3, dtype=torch.bool),
        counts=torch.tensor([5, 6]),
        classes=['a', 'b'],
        embedding={'bottleneck.conv.weight': torch.ones(2, 2, 1, 1)},
        origin=dict(seed=0),
        format='mmseg_cmdl initial memory 1',
    )
    return {key: value for key, value in {**good, **changes}.items() if value is not ...}


def with_value(value):
    centers = torch.ones(2, 3, 2)
    centers[1, 2, 0] = value
    return centers


def test_a_good_file_is_read_as_it_was(tmp_path):
    torch.save(content(), tmp_path / 'good.pth')
    memory = InitialMemory.load(tmp_path / 'good.pth')
    memory.save(tmp_path / 'again.pth')
    again = InitialMemory.load(tmp_path / 'again.pth')
    assert again.centers.tolist() == [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [10, 11]]]
    assert again.classes == ['a', 'b']
    assert again.counts.tolist() == [5, 6]


@pytest.mark.parametrize(('changes', 'said'), [
    (dict(counts=...), 'it has the parts'),
    (dict(distributions=torch.ones(2, 3, 2)), "it has the parts .*'distributions'"),
    (dict(centers=[[1.0]]), 'centers is no tensor'),
    (dict(centers=torch.ones(2, 3)), 'centers is no tensor'),
    (dict(centers=torch.ones(2, 3, 2, dtype=torch.int64)), 'centers is no tensor'),
    (dict(centers=with_value(float('nan'))), "1 vectors .*, the first is 2 of class 'b'"),
    (dict(centers=with_value(float('-inf'))), '1 vectors are not finite'),
    (dict(centers=with_value(3e38)), '1 vectors are not finite'),
    (dict(filled=torch.ones(2, 3)), r'filled is no bool tensor \[2, 3\]'),
    (dict(filled=torch.ones(3, 2, dtype=torch.bool)), 'filled is no bool tensor'),
    (dict(counts=torch.ones(3, dtype=torch.int64)), r'counts is no int64 tensor \[2\]'),
    (dict(classes=['a']), 'it has 1 names of classes for 2 classes'),
    (dict(classes=[1, 2]), 'classes is no list of names'),
    (dict(embedding=[1]), 'embedding is no dict'),
    (dict(embedding={'bottleneck.conv.weight': 3}), 'embedding holds .*, a int'),
    (dict(embedding={'bank.distributions': torch.ones(2, 3, 2)}), '.* belongs to a memory bank'),
    (dict(embedding={'a.weight': torch.full((1,), float('nan'))}), 'a.weight is not finite'),
])  # fmt: skip
def test_anything_else_is_refused(tmp_path, changes, said):
    torch.save(content(**changes), tmp_path / 'bad.pth')
    with pytest.raises(ValueError, match=rf'init: .*bad\.pth is refused: {said}'):
        InitialMemory.load(tmp_path / 'bad.pth')
