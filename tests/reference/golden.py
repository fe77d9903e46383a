"""Load the recorded numbers under tests/data/golden as tensors."""

from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).resolve().parent.parent / 'data' / 'golden'


def names(pattern):
    """File names without suffix that match, sorted; never an empty list, which tests nothing."""
    found = sorted(path.stem for path in FOLDER.glob(f'{pattern}.npz'))
    if not found:
        raise FileNotFoundError(f'no {pattern}.npz under {FOLDER}')
    return found


def load(name, dtype=torch.float64):
    """All arrays of one file: dict of tensors (floating ones in ``dtype``), numbers for scalars."""
    out = {}
    with np.load(FOLDER / f'{name}.npz', allow_pickle=False) as archive:
        for key in archive.files:
            array = archive[key]
            if array.ndim == 0:
                out[key] = array.item()
            else:
                tensor = torch.from_numpy(array)
                out[key] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return out


def weights(data, prefix=''):
    """The ``sd.<prefix>...`` arrays of a file, the prefix taken off, without BN step counters."""
    start = f'sd.{prefix}'
    return {
        key[len(start) :]: value
        for key, value in data.items()
        if key.startswith(start) and not key.endswith('num_batches_tracked')
    }


def assert_close(got, expected, exact=1e-9, single=1e-5):
    """A tensor is the recorded one: to `exact` in float64; in float32 to a share of its largest."""
    atol = exact if expected.dtype == torch.float64 else single * expected.abs().max().item()
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


def probe(output):
    """The scalar whose gradient the files store: sum of output times cosine(flat index)."""
    index = torch.arange(output.numel(), dtype=torch.float64)
    return (output * index.cos().to(output.dtype).reshape(output.shape)).sum()


def to_conv_modules(state):
    """Rename ``<name>.0.weight`` and ``<name>.1.weight`` to ConvModule's ``.conv`` and ``.bn``.

    The released blocks are Sequentials of conv and norm, so the last number before the tensor's
    name says which of the two it is; the number before that, if any, counts the convs.
    """
    renamed = {}
    for key, value in state.items():
        *head, slot, leaf = key.split('.')
        part = {'0': 'conv', '1': 'bn'}.get(slot)
        renamed['.'.join([*head, part or slot, leaf])] = value
    return renamed
