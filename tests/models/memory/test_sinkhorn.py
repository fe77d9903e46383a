import threading

import pytest
import torch

from mmseg_cmdl.models.memory import sinkhorn
from tests.reference import golden, mdrl


class ThreadedGroup:
    """Ranks as threads: each one's ``all_reduce`` returns the sum over all, counted."""

    def __init__(self, size):
        self.size, self.slots, self.calls = size, [None] * size, [0] * size
        self.barrier = threading.Barrier(size, timeout=30)

    def all_reduce_of(self, rank):
        def all_reduce(tensor):
            self.calls[rank] += 1
            self.slots[rank] = tensor.clone()
            self.barrier.wait()
            total = sum(self.slots)
            self.barrier.wait()
            return tensor.copy_(total)

        return all_reduce

    def run(self, function, shards):
        out = [None] * self.size

        def work(rank):
            try:
                out[rank] = function(*shards[rank], self.all_reduce_of(rank))
            except BaseException as error:
                out[rank] = error
                self.barrier.abort()

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for error in out:
            if isinstance(error, BaseException):
                raise error
        return out


def _problem(seed, sizes, num, left_out=0, scale=1.0, dtype=torch.float64):
    """Shuffled pixels of several classes: scores [P, N], classes [P]; class of size 0 is absent."""
    g = torch.Generator().manual_seed(seed)
    num_classes = len(sizes)
    classes = torch.cat(
        [torch.full((m,), c) for c, m in enumerate(sizes)] + [torch.full((left_out,), num_classes)]
    )
    classes = classes[torch.randperm(len(classes), generator=g)]
    scores = (torch.rand(len(classes), num, generator=g, dtype=torch.float64) * 2 - 1) * scale
    return scores.to(dtype), classes, num_classes


@pytest.mark.parametrize('name', golden.names('sinkhorn_*'))
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_golden(name, dtype):
    data = golden.load(name, dtype)
    pixels = len(data['scores'])
    plan = sinkhorn(
        data['scores'],
        torch.zeros(pixels, dtype=torch.long),
        1,
        data['epsilon'],
        data['iterations'],
    )
    atol = 1e-10 if dtype == torch.float64 else 1e-5
    assert plan.dtype == dtype
    torch.testing.assert_close(plan, data['assignment'], rtol=0, atol=atol)
    torch.testing.assert_close(plan.sum(0), data['column_sums'], rtol=0, atol=atol * pixels)
    if pixels > 1:  # one pixel is an exact tie
        assert torch.equal(plan.argmax(1), data['argmax'])


@pytest.mark.parametrize(
    ('sizes', 'num', 'left_out'),
    [
        ((30, 7, 50), 4, 5),
        ((1, 40, 0, 3), 5, 2),  # one pixel, an absent class, fewer than N
        ((25, 1), 1, 0),  # N = 1
        ((0, 0, 12), 3, 9),
        ((64,), 9, 0),
    ],
)
def test_all_classes_at_once_equal_each_alone(sizes, num, left_out):
    scores, classes, num_classes = _problem(0, sizes, num, left_out)
    given = scores.clone(), classes.clone()
    plan = sinkhorn(*given, num_classes)
    assert torch.equal(given[0], scores)
    assert torch.equal(given[1], classes)
    expected = mdrl.assign(scores, classes, num_classes)
    torch.testing.assert_close(plan, expected, rtol=0, atol=1e-12)
    assert torch.equal(plan[classes == num_classes], torch.zeros(left_out, num).double())
    torch.testing.assert_close(plan.sum(1), (classes < num_classes).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(('epsilon', 'iterations'), [(0.05, 1), (0.05, 10), (0.5, 3), (0.01, 4)])
def test_epsilon_and_iterations(epsilon, iterations):
    scores, classes, num_classes = _problem(1, (20, 33), 4)
    plan = sinkhorn(scores, classes, num_classes, epsilon=epsilon, iterations=iterations)
    expected = mdrl.assign(scores, classes, num_classes, epsilon, iterations, mdrl.sinkhorn_log)
    torch.testing.assert_close(plan, expected, rtol=0, atol=1e-11)


def test_no_pixels():
    plan = sinkhorn(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), 3)
    assert plan.shape == (0, 4)


def test_scores_of_many_epsilons_match_log_space():
    scores, classes, num_classes = _problem(6, (30, 1, 17), 4, left_out=2, scale=10.0)
    plan = sinkhorn(scores, classes, num_classes)
    expected = mdrl.assign(scores, classes, num_classes, form=mdrl.sinkhorn_log)
    torch.testing.assert_close(plan, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize('iterations', [1, 3, 5])
def test_ranks_share_the_balance(iterations):
    """Shards with uneven labels, one of them all left out, give the rows of the whole."""
    scores, classes, num_classes = _problem(9, (30, 12, 1), 4, left_out=3)
    order = classes.argsort()
    scores, classes = scores[order], classes[order]
    bounds = [(0, 19), (19, 19), (19, 43), (43, 46)]  # some, none, rest, all left out
    group = ThreadedGroup(4)
    parts = group.run(
        lambda s, c, reduce: sinkhorn(s, c, num_classes, iterations=iterations, all_reduce=reduce),
        [(scores[a:b], classes[a:b]) for a, b in bounds],
    )
    whole = sinkhorn(scores, classes, num_classes, iterations=iterations)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-12)
    assert group.calls == [iterations] * 4


@pytest.mark.parametrize(('dtype', 'atol'), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_ranks_with_scores_of_different_size(dtype, atol):
    """No rank overflows because another one's scores are larger, up to 300 times epsilon."""
    scores, classes, num_classes = _problem(10, (24, 12), 3, dtype=torch.float64)
    scores[:18] *= 15.0
    scores[18:] -= 14.0
    scores = scores.to(dtype)
    parts = ThreadedGroup(2).run(
        lambda s, c, reduce: sinkhorn(s, c, num_classes, all_reduce=reduce),
        [(scores[:18], classes[:18]), (scores[18:], classes[18:])],
    )
    expected = mdrl.assign(scores.double(), classes, num_classes, form=mdrl.sinkhorn_log)
    torch.testing.assert_close(torch.cat(parts).double(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize('scale', [1e3, 1e6])
def test_ranks_with_scores_beyond_any_exponent(scale):
    scores, classes, num_classes = _problem(11, (24, 12), 3, scale=scale, dtype=torch.float32)
    parts = torch.cat(
        ThreadedGroup(2).run(
            lambda s, c, reduce: sinkhorn(s, c, num_classes, all_reduce=reduce),
            [(scores[:18], classes[:18]), (scores[18:], classes[18:])],
        )
    )
    assert parts.isfinite().all()
    torch.testing.assert_close(parts.sum(1), torch.ones(36))
