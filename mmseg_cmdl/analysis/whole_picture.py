"""A picture larger than what a model was trained on, seen through windows that overlap, and which
distributions of an MDRL bank it is made of.
"""

from typing import Callable, List, NamedTuple, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from mmseg.structures import SegDataSample
from torch import Tensor

from ..compat import swaps_channels
from .examined_model import ExaminedModel


class WholePicture(NamedTuple):
    """What an MDRL head makes of a picture of H x W pixels, at feature size."""

    logits: Tensor  # [K, h, w]
    embeddings: Tensor  # unit vectors [h, w, Z]
    size: tuple  # (H, W)
    stride: int  # pixels per feature

    def enlarged(self, maps: Tensor) -> Tensor:
        """[C, h, w] to [C, H, W], bilinear, as segmentors enlarge their logits."""
        maps = F.interpolate(
            maps[None], scale_factor=self.stride, mode='bilinear', align_corners=False
        )
        return maps[0, :, : self.size[0], : self.size[1]]


class ClassDistributions(NamedTuple):
    """The distributions that make up most of a class."""

    indices: List[int]  # in the bank
    shares: List[float]  # of the class's pixels that each has among all of the bank
    own: np.ndarray  # at feature size [h, w], where the class is predicted: position in `indices`
    large: np.ndarray  # the same for every pixel of the picture, uint8 [H, W]
    scores: np.ndarray  # cosine to each [len(indices), h, w]


def see_whole(
    model: ExaminedModel,
    picture: np.ndarray,
    window: int = 336,
    stride: int = 8,
    track: Callable = lambda items, total: items,
) -> WholePicture:
    """Logits and embeddings of a picture from windows of which each overlaps the next by half.

    Where windows overlap, each is weighted most at its centre, so that no seam is visible.

    Args:
        model (ExaminedModel): With an MDRLHead.
        picture (np.ndarray): RGB uint8 [H, W, 3].
        window (int): Side of a window in pixels, a multiple of twice the stride.
        stride (int): Pixels per feature of the map that the head takes.
        track (callable): Called with the windows and their number, gives them back one by one; for
            a progress bar.

    Returns:
        WholePicture: h and w are H / stride and W / stride, rounded up.
    """
    head, size = model.head, picture.shape[:2]
    if not hasattr(head, 'embed') or window % (2 * stride):
        raise ValueError('see_whole needs an MDRLHead, and windows of a multiple of 2 * stride')
    inputs = _prepared(model, picture, window, stride)
    cells, side = [n // stride for n in inputs.shape[2:]], window // stride
    logits = inputs.new_zeros(head.num_classes, *cells)
    embeddings = inputs.new_zeros(head.bank.channels, *cells)
    weights = inputs.new_zeros(cells)
    # periodic: two windows that overlap by half add up to 1; nowhere is it 0
    ramp = torch.hann_window(side, device=inputs.device) + 1e-3
    weight = ramp[:, None] * ramp
    # in features; the last window ends with the picture
    tops, lefts = ([*range(0, n - side, side // 2), n - side] for n in cells)
    places = [(top, left) for top in tops for left in lefts]
    with torch.no_grad():
        for top, left in track(places, len(places)):
            here = slice(top, top + side), slice(left, left + side)
            pixels = (slice(stride * x.start, stride * x.stop) for x in here)
            own, _, augmented = head.forward_features(
                model.model.extract_feat(inputs[(slice(None), slice(None), *pixels)])
            )
            logits[(slice(None), *here)] += weight * head.cls_seg(augmented)[0]
            embeddings[(slice(None), *here)] += weight * head.embed(own)[0].permute(2, 0, 1)
            weights[here] += weight
    h, w = (-(-n // stride) for n in size)
    return WholePicture(
        (logits / weights)[:, :h, :w].cpu(),
        F.normalize(embeddings, dim=0).permute(1, 2, 0)[:h, :w].cpu(),
        size,
        stride,
    )


def _prepared(model: ExaminedModel, picture: np.ndarray, window: int, stride: int) -> Tensor:
    """Normalised [1, 3, H', W'] that whole features fill; the border's pixels go on beyond it."""
    prepare = model.model.data_preprocessor
    if swaps_channels(prepare):
        picture = picture[..., ::-1]
    beyond = [(0, max(window, -(-n // stride) * stride) - n) for n in picture.shape[:2]]
    picture = np.pad(picture, [*beyond, (0, 0)], mode='edge')
    image = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
    return prepare(dict(inputs=[image], data_samples=[SegDataSample()]), False)['inputs']


def main_distributions(
    whole: WholePicture,
    distributions: Tensor,
    brightness: np.ndarray,
    least_share: float = 0.05,
    most: int = 4,
) -> List[ClassDistributions]:
    """For each class the distributions that most of its pixels belong to.

    A pixel belongs to the nearest distribution of its predicted class; those of a distribution that
    is not among them belong to the nearest that is.

    Args:
        whole (WholePicture): Logits and embeddings of the picture.
        distributions (Tensor): Unit vectors [K, N, Z].
        brightness (np.ndarray): Brightness of the picture [H, W], by which distributions are
            sorted, the darkest first.
        least_share (float): Smallest share of the class's pixels of a distribution that is kept.
        most (int): Largest number of distributions that are kept.

    Returns:
        list[ClassDistributions]: K of them; one without pixels has no distributions.
    """
    classes = whole.logits.argmax(dim=0)
    half = whole.stride // 2
    rows = torch.from_numpy(np.ascontiguousarray(brightness[half :: whole.stride]))
    light = rows[:, half :: whole.stride].float()
    light = F.interpolate(light[None, None], classes.shape)[0, 0]
    found = []
    for k, rows in enumerate(distributions.to(whole.embeddings)):
        scores = (whole.embeddings @ rows.t()).permute(2, 0, 1)
        own = torch.where(classes == k, scores.argmax(dim=0), -1)
        counts = torch.bincount(own[own >= 0], minlength=len(rows))
        shares = counts / counts.sum().clamp(min=1)
        largest = shares.argsort(descending=True, stable=True)[:most].tolist()
        chosen = [n for n in largest if counts[n] and shares[n] >= least_share]
        chosen.sort(key=lambda n: light[own == n].mean().item())
        if not chosen:
            nowhere = np.zeros(tuple(classes.shape), np.int64), np.zeros(whole.size, np.uint8)
            found.append(ClassDistributions([], [], *nowhere, np.zeros((0, *classes.shape))))
            continue
        scores = scores[chosen]
        found.append(
            ClassDistributions(
                chosen,
                shares[chosen].tolist(),
                scores.argmax(dim=0).numpy(),
                whole.enlarged(scores).argmax(dim=0).to(torch.uint8).numpy(),
                scores.numpy(),
            )
        )
    return found


def nearest_places(scores: np.ndarray, among: np.ndarray, count: int, apart: int) -> List[tuple]:
    """Where the scores are highest.

    Args:
        scores (np.ndarray): [h, w].
        among (np.ndarray): Bool [h, w]: which places count.
        count (int): Largest number of places.
        apart (int): Any two places are more than this many rows or columns apart.

    Returns:
        list[tuple]: (row, column), the best first.
    """
    scores = np.where(among, scores, -np.inf)
    found: List[Tuple[int, int]] = []
    while len(found) < count and np.isfinite(scores.max()):
        row, column = divmod(int(scores.argmax()), scores.shape[1])
        found.append((row, column))
        around = (slice(max(0, at - apart), at + apart + 1) for at in found[-1])
        scores[tuple(around)] = -np.inf
    return found
