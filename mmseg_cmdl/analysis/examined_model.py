"""A trained model beside the data it is looked at with: predictions and pixel features, one image
at a time.
"""

import re
from pathlib import Path
from typing import Iterable, Iterator, NamedTuple, Optional, Sequence

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmseg.datasets import BaseSegDataset
from mmseg.models.segmentors import BaseSegmentor
from torch import Tensor

from ..checkpoint_file import checked_checkpoint, load_state
from ..compat import swaps_channels
from ..config_file import load_config, setting_up, without_pretrained
from ..data_guard import ignored_labels, sample_check
from ..dataset_building import build_dataset, leaves
from ..errors import InputError
from ..models.memory import MemoryBank
from ..utils import last_head

FEATURES = ('classifier', 'embedding', 'backbone')
SPLITS = ('train', 'val', 'test')


class Example(NamedTuple):
    """One image and what a model made of it. Everything is on the CPU."""

    # a method of tuples, here a field
    index: int  # type: ignore[assignment]  # in the data set
    path: str
    image: np.ndarray  # RGB uint8 [H', W', 3], what the model saw before normalisation
    truth: np.ndarray  # labels [H, W] at the size of the annotation, 255 where there is none
    prediction: Optional[np.ndarray]  # labels [H, W]
    features: Optional[Tensor]  # [h, w, Z], padding cut off
    labels: Optional[Tensor]  # int64 [h, w]: nearest labels at the place of each feature
    stride: Optional[tuple]  # pixels of `image` per feature: (H' / h, W' / w)


def labels_of_features(
    truth: np.ndarray,
    image_size: tuple,
    padded_size: tuple,
    feature_size: tuple,
) -> np.ndarray:
    """Nearest label of each position of a feature map over a padded image.

    Indices are rounded down after scaling, in integers, as in
    :func:`mmseg_cmdl.utils.labels_at_feature_size`.

    Args:
        truth (np.ndarray): Labels [H, W], of any size.
        image_size (tuple[int, int]): Size of the image as the model saw it.
        padded_size (tuple[int, int]): The same with padding at the lower and right border.
        feature_size (tuple[int, int]): (h, w), over the padded image.

    Returns:
        np.ndarray: int64 [h, w], 255 in the padding.
    """
    rows, cols = (np.arange(n) * padded // n for n, padded in zip(feature_size, padded_size))
    inside = (rows < image_size[0])[:, None] & (cols < image_size[1])
    rows = np.minimum(rows, image_size[0] - 1) * truth.shape[0] // image_size[0]
    cols = np.minimum(cols, image_size[1] - 1) * truth.shape[1] // image_size[1]
    return np.where(inside, truth[rows[:, None], cols], 255).astype(np.int64)


class ExaminedModel:
    """A model in eval mode with a split of its config's data, images one at a time.

    Features are those of the whole image, also where the config predicts in sliding windows.

    Args:
        model (BaseSegmentor): A segmentor.
        dataset: Its data set; the pipeline must load annotations.
        name (str): For legends and file names.
        ignored (Sequence[int | None]): Labels that the metrics of the split leave out, beside the
            `ignore_index` of the head and 255.
    """

    def __init__(
        self,
        model: BaseSegmentor,
        dataset: BaseSegDataset,
        name: str,
        ignored: Sequence[Optional[int]] = (),
    ):
        self.model = model.eval()
        self.dataset = dataset
        self.name = name
        if not dataset.metainfo.get('classes'):
            raise InputError(
                f'the data set of {name} names no classes; set metainfo=dict(classes=[...]) in the '
                'dataset of its config'
            )
        self.classes = list(dataset.metainfo['classes'])
        palette = dataset.metainfo.get('palette')
        self.palette = [tuple(color) for color in palette] if palette else _palette(self.classes)
        self.head = last_head(model)
        if self.head.num_classes != len(self.classes):
            raise InputError(
                f'{name} predicts {self.head.num_classes} classes, but its data set has '
                f'{len(self.classes)} names of classes; set num_classes or metainfo in its config'
            )
        # classes that a metric leaves out are classes in a figure
        others = (i for i in ignored if i is not None and not 0 <= i < len(self.classes))
        self._ignored = {self.head.ignore_index, *others}
        self._check = sample_check(model, ignored=[255])

    @classmethod
    def load(
        cls,
        config: str,
        checkpoint: str,
        split: str = 'val',
        device: str = 'cpu',
        options: Optional[dict] = None,
        name: Optional[str] = None,
    ) -> 'ExaminedModel':
        """From a config and a checkpoint file.

        Args:
            config (str): Config file.
            checkpoint (str): File or URL.
            split (str): Which data set of the config: 'train', 'val' or 'test'. Training images go
                through the pipeline of 'val', without augmentation.
            device (str): 'cpu' or 'cuda:0', say.
            options (dict, optional): Overrides of the config.
            name (str, optional): Defaults to the config's name.

        Raises:
            InputError: A file is missing, or the config has no such split.
        """
        from mmseg.apis import init_model

        cfg = load_config(str(config), options)
        checkpoint = checked_checkpoint(str(checkpoint))
        with setting_up(cfg, str(config), options):
            dataset = dataset_of_split(cfg, split)
            without_pretrained(cfg.model)
            model = init_model(cfg, None, device=device)
        load_state(model, checkpoint, 'Give the config that it was trained with')
        metrics = cfg.get(f'{"test" if split == "test" else "val"}_evaluator')
        return cls(model, dataset, name or Path(config).stem, ignored_labels(metrics))

    @property
    def memory(self) -> Optional[MemoryBank]:
        """The bank of the head, if it has one."""
        bank = getattr(self.head, 'bank', None)
        return bank if isinstance(bank, MemoryBank) else None

    def bank(self, why: str = 'this') -> MemoryBank:
        """The bank of the head.

        Raises:
            InputError: The head has none. `why` is what needs it, for the message.
        """
        bank = self.memory
        if bank is None:
            raise InputError(
                f'{why} needs a memory bank, and the head of {self.name}, a '
                f'{type(self.head).__name__}, has none'
            )
        return bank

    def examples(
        self,
        indices: Optional[Iterable[int]] = None,
        features: Optional[str] = None,
        predict: bool = False,
    ) -> Iterator[Example]:
        """Runs the model on one image after the other.

        Args:
            indices (Iterable[int], optional): Images; all by default.
            features (str, optional): 'classifier', what enters `conv_seg`; 'embedding', the unit
                vectors that an MDRLHead compares with its distributions; 'backbone', the feature
                map that the head selects. Defaults to None: no features.
            predict (bool): Whether to predict too, in the test mode of the config.

        Yields:
            Example: With the parts that were asked for.
        """
        for index in range(len(self.dataset)) if indices is None else indices:
            yield self.example(index, features, predict)

    @torch.no_grad()
    def example(self, index: int, features: Optional[str] = None, predict: bool = False) -> Example:
        """One of :meth:`examples`.

        Raises:
            DataError: Image or annotation can't be read, a label is no class, or the annotation is
                not of the size of its image; names the file.
        """
        if not 0 <= index < len(self.dataset):
            raise InputError(
                f'there is no image {index}: the split of {self.name} has '
                f'images 0 to {len(self.dataset) - 1}'
            )
        return self._run(pseudo_collate([self.dataset[index]]), index, features, predict)

    @torch.no_grad()
    def feature_maps(self, index: int) -> list:
        """The backbone's maps of one image, padding included."""
        data = self.model.data_preprocessor(pseudo_collate([self.dataset[index]]), False)
        return self.model.extract_feat(data['inputs'])

    def _run(self, data: dict, index: int, features: Optional[str], predict: bool) -> Example:
        sample = data['data_samples'][0]
        path = sample.metainfo.get('img_path', f'image {index}')
        if 'gt_sem_seg' not in sample:
            raise InputError(
                f'{path} comes without labels: put LoadAnnotations into the '
                "split's pipeline, before PackSegInputs, or choose another --split"
            )
        raw = data['inputs'][0]
        # as all figures have it; heads may use another number
        label_map = sample.gt_sem_seg.data
        for label in self._ignored:
            label_map[label_map == label] = 255
        self._check.look(raw, sample)
        truth = label_map[0].cpu().numpy().astype(np.int64)
        prepared = self.model.data_preprocessor(data, False)
        inputs = prepared['inputs']
        prediction = maps = labels = stride = None
        if predict:
            output = self.model.predict(inputs, prepared['data_samples'])[0]
            prediction = output.pred_sem_seg.data[0].cpu().numpy()
        if features is not None:
            maps = self._features(inputs, prepared['data_samples'], features)
            size, padded = tuple(raw.shape[1:]), tuple(inputs.shape[2:])
            labels = labels_of_features(truth, size, padded, maps.shape[:2])
            stride = tuple(p / n for p, n in zip(padded, maps.shape[:2]))
            valid = [-(-n * s // p) for n, s, p in zip(maps.shape[:2], size, padded)]
            maps = maps[: valid[0], : valid[1]].cpu()
            labels = labels[: valid[0], : valid[1]]
        image = raw.permute(1, 2, 0).cpu().numpy()
        if image.shape[2] == 3 and swaps_channels(self.model.data_preprocessor):
            image = image[..., ::-1]
        return Example(
            index,
            path,
            as_picture(image),
            truth,
            prediction,
            maps,
            None if labels is None else torch.from_numpy(labels),
            stride,
        )

    def _features(self, inputs: Tensor, samples: list, kind: str) -> Tensor:
        """[h, w, Z] of the one image."""
        if kind not in FEATURES:
            raise ValueError(f'features must be one of {FEATURES}, got {kind!r}')
        if kind == 'backbone':
            maps = self.model.extract_feat(inputs)
            selected = self.head._transform_inputs(maps)
            if isinstance(selected, (list, tuple)):
                selected = selected[-1]
            return selected[0].permute(1, 2, 0).float()
        if kind == 'embedding':
            if not hasattr(self.head, 'embed') or not hasattr(self.head, 'bottleneck'):
                raise InputError(
                    f'{self.name} has a {type(self.head).__name__}, which embeds '
                    'no pixels; take --features classifier or backbone'
                )
            maps = self.head._transform_inputs(self.model.extract_feat(inputs))
            return self.head.embed(self.head.bottleneck(maps))[0]
        classifier = getattr(self.head, 'conv_seg', None)
        if classifier is None:
            raise InputError(
                f'{self.name} has a {type(self.head).__name__}, which has no '
                'conv_seg whose input could be looked at; take --features backbone'
            )
        caught = []
        # registered after CAR's own hook, so it sees what that hands on
        handle = classifier.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
        try:
            self.model._forward(inputs, samples)
        finally:
            handle.remove()
        return caught[-1][0].permute(1, 2, 0).float()


def as_picture(image: np.ndarray) -> np.ndarray:
    """An image of any kind as one for the eye.

    Args:
        image (np.ndarray): [H, W, bands]. Of more than three bands the first three are taken, of
            one or two the first. Numbers that aren't 8 bit are scaled from their percentiles 1 and
            99, all bands together, unless they lie in 0..255 as they are.

    Returns:
        np.ndarray: RGB, uint8 [H, W, 3].
    """
    bands = image[..., :3] if image.shape[2] >= 3 else image[..., :1].repeat(3, axis=2)
    if bands.dtype != np.uint8:
        bands = bands.astype(np.float64)
        finite = bands[np.isfinite(bands)]
        low, high = (0.0, 255.0) if not finite.size else (finite.min(), finite.max())
        if low < 0 or high > 255 or high <= 1:
            low, high = np.percentile(finite, (1, 99)) if finite.size else (0.0, 1.0)
            bands = (bands - low) * (255 / max(high - low, 1e-12))
        bands = np.nan_to_num(bands, nan=0, posinf=255, neginf=0).round().clip(0, 255)
    return np.ascontiguousarray(bands, dtype=np.uint8)


def dataset_of_split(cfg: Config, split: str) -> BaseSegDataset:
    """Data set of a split, without augmentation.

    Raises:
        InputError: The config has no such split.
    """
    loader = cfg.get(f'{split}_dataloader')
    if not loader:
        raise InputError(f'{cfg.filename} has no {split}_dataloader; choose another --split')
    dataset = Config(dict(dataset=loader.dataset)).dataset.copy()
    if split == 'train':
        plain = cfg.get('val_dataloader') or cfg.get('test_dataloader')
        if not plain:
            raise InputError(
                f'{cfg.filename} has no val_dataloader whose pipeline the '
                'training images could go through'
            )
        pipeline = next(leaves(plain.dataset)).pipeline
        for part in leaves(dataset):
            part.pipeline = pipeline
    from mmengine.registry import init_default_scope

    init_default_scope(cfg.get('default_scope') or 'mmseg')
    return build_dataset(dataset, split)


def _palette(classes: Sequence[str]) -> list:
    """Colours for a data set that brings none: around the circle of hues, two lightnesses."""
    import colorsys

    colors = [
        colorsys.hls_to_rgb(i / len(classes), 0.42 + 0.22 * (i % 2), 0.65)
        for i in range(len(classes))
    ]
    return [tuple(round(255 * part) for part in color) for color in colors]


def chosen_classes(names: Optional[Sequence[str]], classes: Sequence[str]) -> list:
    """Indices of classes given by name or number; all if none are given.

    Raises:
        InputError: There is no such class; lists those there are.
    """
    if not names:
        return list(range(len(classes)))
    found = []
    for name in names:
        if name in classes:
            found.append(classes.index(name))
        elif re.fullmatch(r'\d+', name) and int(name) < len(classes):
            found.append(int(name))
        else:
            raise InputError(f'there is no class {name!r}; there are: {", ".join(classes)}')
    return found
