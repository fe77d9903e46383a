"""Many classes and distributions, large images, long trainings."""

import gc
import os

import pytest
import torch
from mmengine.config import ConfigDict

from mmseg_cmdl.models.memory import DistributionBank, FeatureBank, sinkhorn
from tests.guarantees import cases
from tests.models.decode_heads import tiny_head

pytestmark = pytest.mark.long


def resident_bytes():
    """What of this process is in memory; Linux tells."""
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')


needs_proc = pytest.mark.skipif(not os.path.exists('/proc/self/statm'), reason='Linux tells it')


@pytest.mark.parametrize(('num_classes', 'count'), [
    (1000, 1), (1000, 9), (10_000, 3), (100, 64), (5, 64), (5, 1),
])  # fmt: skip
def test_many_classes_and_distributions(num_classes, count):
    """One step of both heads: finite losses and gradients, unit rows, absent classes untouched."""
    options = dict(dtype=torch.float32, num_classes=num_classes)
    bank = dict(type='DistributionBank', num_distributions=count, momentum=0.9, update_pixels='all')
    heads = [tiny_head.build(bank=bank, **options)]
    if count == 1:
        heads.append(tiny_head.build_mcibi(**options))
    maps = tiny_head.features(batch=1, dtype=torch.float32)
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(num_classes, (1, *tiny_head.LABEL_SIZE), generator=g)
    for head in heads:
        before = head.bank.class_vectors().clone()
        losses = head.loss(maps, tiny_head.samples(labels), {})
        tiny_head.objective(losses).backward()
        assert all(value.isfinite() for value in losses.values())
        assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)
        rows = head.bank.class_vectors()
        absent = torch.ones(num_classes, dtype=torch.bool)
        absent[labels.unique()] = False
        assert torch.equal(rows[absent], before[absent])
        assert not torch.equal(rows, before)
        if isinstance(head.bank, DistributionBank):
            torch.testing.assert_close(rows.norm(dim=-1), torch.ones(num_classes, count))


def test_balanced_assignment_of_many_classes():
    """Each class on its own, whatever the others are: as if it were the only one."""
    g = torch.Generator().manual_seed(0)
    classes = torch.randint(10_000, (3000,), generator=g)
    classes[:40] = 77
    scores = torch.rand(3000, 8, generator=g, dtype=torch.float64) * 2 - 1
    assigned = sinkhorn(scores, classes, 10_000)
    torch.testing.assert_close(assigned.sum(dim=1), torch.ones(3000, dtype=torch.float64))
    own = classes == 77
    alone = sinkhorn(scores[own], torch.zeros(int(own.sum()), dtype=torch.long), 1)
    torch.testing.assert_close(assigned[own], alone)


@pytest.mark.parametrize('name', ['mdrl', 'dgcw'])
def test_an_image_of_ten_thousand_pixels_a_side(name):
    """In slide mode: every pixel is predicted as by its own windows, at the size of the image.

    The network is a pointwise one at stride 500, so that the image, and not the network, is large.
    """
    model = cases.from_config(cases.model_config(name, num_classes=2)).eval()
    size, crop = 10_000, 5_000

    class Coarse(torch.nn.Module):
        def forward(self, x):
            pooled = torch.nn.functional.avg_pool2d(x, 500)
            return [torch.cat([pooled] * 4, dim=1)[:, :c] for c in cases.CHANNELS]

    model.backbone = Coarse()
    model.test_cfg = ConfigDict(mode='slide', crop_size=(crop, crop), stride=(crop, crop))
    g = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, size // 500, size // 500, generator=g)
    image = image.repeat_interleave(500, 2).repeat_interleave(500, 3)
    metas = [dict(img_shape=(size, size), ori_shape=(size, size), pad_shape=(size, size))]
    with torch.no_grad():
        logits = model.inference(image, metas)
        assert logits.shape == (1, 2, size, size)
        for top, left in ((0, 0), (5_000, 0), (5_000, 5_000)):
            window = image[:, :, top : top + crop, left : left + crop]
            alone = model.encode_decode(window, [dict(img_shape=(crop, crop))])
            part = logits[:, :, top : top + crop, left : left + crop]
            torch.testing.assert_close(part, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kind', ['distribution', 'feature'])
def test_a_hundred_thousand_updates(kind):
    """As in float16 autocast, by features that drift, now and then with an inf among them."""
    g = torch.Generator().manual_seed(0)
    if kind == 'distribution':
        bank = DistributionBank(3, 2, 4, momentum=0.99)
    else:
        bank = FeatureBank(3, 4)
    means, drift = torch.randn(3, 4, generator=g), torch.randn(3, 4, generator=g)
    labels = torch.arange(12) % 3
    noise = torch.randn(64, 12, 4, generator=g)
    for step in range(100_000):
        if step % 1000 == 0:
            drift = torch.randn(3, 4, generator=g)
        means = means + 1e-3 * drift
        features = (means[labels] + noise[step % 64]).half()
        if step % 97 == 0:
            features[step % 12] = float('inf')
        if kind == 'distribution':
            embeddings = torch.nn.functional.normalize(features.float(), dim=1).half()
            bank.update_(embeddings, labels)
        else:
            bank.update_(features, labels, 0.1)
    vectors = bank.class_vectors()
    assert vectors.dtype == torch.float32
    assert vectors.isfinite().all()
    assert bank.num_updates == 100_000
    if kind == 'distribution':
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3, 2), rtol=0, atol=1e-5)
    else:  # where the features have gone
        expected = means + noise.view(64, 4, 3, 4).mean(dim=(0, 1))
        torch.testing.assert_close(vectors[:, 0], expected, rtol=0.2, atol=1.0)


@needs_proc
@pytest.mark.parametrize('name', ['mdrl', 'mcibi', 'car'])
def test_memory_does_not_grow(name):
    """Over 2,000 steps: less than one MiB between the first and the second half's end."""
    model = cases.build(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    images, samples = cases.batch()
    held = []
    for step in range(2000):
        optimizer.zero_grad()
        cases.objective(model.loss(images, samples)).backward()
        optimizer.step()
        if step in (999, 1999):
            gc.collect()
            held.append(resident_bytes())
    assert held[1] - held[0] < 2**20
