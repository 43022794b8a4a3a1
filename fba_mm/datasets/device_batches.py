"""Small images on the device that trains on them: no worker, no copy, no image at a time.

A network for 32×32 px images trains faster than a few workers can crop, pack and collate them. The
whole set fits on the device many times over (CIFAR-10: 154 MB), and there a batch is cropped and
mirrored by one indexing operation.
"""

from typing import Any, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..arguments import check_count
from ..errors import LocalLearningError


class Augmentation(NamedTuple):
    """What mmpretrain's ``RandomCrop`` (with padding, to the image's size) and ``RandomFlip`` do.

    Args:
        padding: Pixels added on each side before an image-sized part is cut out; 0 cuts nothing.
        flip_prob: Probability of mirroring an image, left to right.
        reflect: Add the image's own pixels, mirrored at its border, instead of zeros.
    """

    padding: int = 0
    flip_prob: float = 0.0
    reflect: bool = False

    def draw(self, count: int, rng: np.random.Generator) -> Tuple[Tensor, Tensor]:
        """Draw for each image where it is cut out and whether it is mirrored.

        Args:
            count: Number of images.
            rng: Where random numbers come from.

        Returns:
            Row and column of the part's corner in the padded image, int64 of (count, 2), and
            bool of (count,).
        """
        corners = rng.integers(2 * self.padding + 1, size=(count, 2))
        mirrored = rng.random(count) < self.flip_prob
        return torch.from_numpy(corners), torch.from_numpy(mirrored)

    def apply(self, images: Tensor, corners: Tensor, mirrored: Tensor) -> Tensor:
        """Cut out and mirror.

        Args:
            images: Of (N, C, H, W).
            corners: As :meth:`draw` gives them, on the images' device.
            mirrored: As :meth:`draw` gives them, on the images' device.

        Returns:
            Images of the same shape and type.
        """
        if not self.padding and not self.flip_prob:
            return images
        count, channels, height, width = images.shape
        device = images.device
        rows = corners[:, :1] + torch.arange(height, device=device)
        columns = torch.arange(width, device=device).expand(count, width)
        columns = corners[:, 1:] + torch.where(mirrored[:, None], columns.flip(1), columns)
        if self.reflect:
            rows, columns = (
                _reflected(index - self.padding, size)
                for index, size in ((rows, height), (columns, width))
            )
        elif self.padding:
            images = F.pad(images, [self.padding] * 4)
        return images[
            torch.arange(count, device=device)[:, None, None, None],
            torch.arange(channels, device=device)[None, :, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]


def _reflected(index: Tensor, size: int) -> Tensor:
    """Where an index outside of 0 to size - 1 lies when it is mirrored at the border."""
    return (size - 1) - (size - 1 - index.abs()).abs()


class DeviceBatches:
    """A classification data set that lies on the device, and gives batches from there.

    Stands in for a training dataloader: iterating gives ``dict(inputs=..., data_samples=[...])``
    for a model's ``train_step``, ``len()`` is the number of batches. ``inputs`` is one uint8 tensor
    of (N, C, H, W) on the device, unless ``mean`` and ``std`` are given: mmpretrain's classifiers
    normalize in their own data preprocessor, which runs on the device too.

    Each pass over the data is an epoch with a shuffling and augmentation of its own that depends
    on ``seed`` and the epoch's number alone, not on the device. :meth:`set_epoch` sets the number;
    MMEngine's ``DistSamplerSeedHook`` calls it, so that a resumed training goes on as it would
    have. For evaluation: ``shuffle=False``, no augmentation.

    Args:
        images: uint8 of (N, C, H, W), in the channel order that the model's preprocessor expects.
        labels: Of (N,), from 0.
        batch_size: Images of a batch; the last of an epoch may have fewer.
        augmentation: Crops and mirrors.
        shuffle: Draw a new order in each epoch.
        drop_last: Leave the last batch out if it has fewer images.
        seed: What the random numbers start from.
        device: Where the data lies; the images' own unless given.
        mean: Means of the channels, 0 to 255, for a model that does not normalize. ``inputs`` are
            then float32.
        std: Standard deviations of the channels.
        joint_sample: Give one data sample with the labels of the whole batch instead of one per
            image. It saves about 12 ms of 1,024 images, and mmpretrain's classifiers and FBA's SLM
            learn the same from it. What looks at each image's label, or wants one-hot labels,
            needs one per image.
        metainfo: The data set's, as ``dict(classes=...)``.

    Raises:
        LocalLearningError: Shapes, types or labels that don't fit.

    Example:
        >>> dataset = fba_mm.HandwrittenDigits('train')
        >>> batches = DeviceBatches.from_dataset(dataset, 64, device='cpu')
        >>> data = next(iter(batches))
        >>> data['inputs'].shape, len(data['data_samples'])
        (torch.Size([64, 3, 32, 32]), 64)
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        augmentation: Augmentation = Augmentation(),
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 0,
        device: Union[str, torch.device, None] = None,
        mean: Optional[Sequence[float]] = None,
        std: Optional[Sequence[float]] = None,
        joint_sample: bool = False,
        metainfo: Optional[dict] = None,
    ):
        if images.ndim != 4 or images.dtype != torch.uint8:
            raise LocalLearningError(
                f'images are {images.dtype} of {tuple(images.shape)}: give uint8 of (N, C, H, W)'
            )
        if labels.shape != images.shape[:1] or not len(labels):
            raise LocalLearningError(
                f'{len(images)} images have labels of {tuple(labels.shape)}: give one label per '
                'image, and at least one of both'
            )
        classes = (metainfo or {}).get('classes')
        least, greatest = int(labels.min()), int(labels.max())
        if least < 0 or (classes is not None and greatest >= len(classes)):
            raise LocalLearningError(
                f'labels go from {least} to {greatest}, which does not fit '
                f'{"any" if classes is None else len(classes)} classes: labels count from 0'
            )
        check_count('batch_size', batch_size)
        if drop_last and batch_size > len(images):
            raise LocalLearningError(
                f'batch_size={batch_size} with drop_last leaves nothing of {len(images)} images: '
                'give a smaller one'
            )
        if (mean is None) != (std is None):
            raise LocalLearningError('give both mean and std, or none of them')
        self.images = images.to(device or images.device)
        self.labels = labels.to(self.images.device, torch.long)
        self.batch_size = batch_size
        self.augmentation = augmentation
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.joint_sample = joint_sample
        self.metainfo = dict(metainfo or {})
        self.dataset = DeviceDataset(self)
        self.epoch = 0
        # So many batches are left out of the next pass: a training that was resumed had them.
        self.skip = 0
        self._normalization = (
            None
            if mean is None
            else tuple(
                torch.tensor(values, dtype=torch.float32, device=self.images.device).view(-1, 1, 1)
                for values in (mean, std)
            )
        )

    @classmethod
    def from_dataset(
        cls, dataset, batch_size: int, max_images: Optional[int] = None, **kwargs
    ) -> 'DeviceBatches':
        """Read a data set of mmpretrain, each item once, and do what its pipeline does.

        The pipeline's ``RandomCrop`` and ``RandomFlip`` become the augmentation, transforms that
        draw nothing run once per image, ``PackInputs`` not at all.

        Args:
            dataset: The data set.
            batch_size: Images of a batch.
            max_images: Take so many, at equal distances, if there are more. Of a data set that is
                sorted by class, as folders are, classes keep their shares.
            **kwargs: More arguments of the class.

        Raises:
            LocalLearningError: Images of different sizes, a crop of another size than the images,
                or a transform that can't be done on the device.
        """
        if max_images is not None:
            check_count('max_images', max_images, fix=', or leave it unset')
        once, *_ = _split_pipeline(dataset.pipeline)
        count = len(dataset) if max_images is None else min(max_images, len(dataset))
        images, labels = [], []
        for info in _with_progress(dataset, [i * len(dataset) // count for i in range(count)]):
            for transform in once:
                info = transform(info)
            image, first = torch.from_numpy(np.ascontiguousarray(info['img'])), images[:1]
            if image.ndim != 3 or image.dtype != torch.uint8:
                raise LocalLearningError(
                    f'image {len(images)} is {image.dtype} of {tuple(image.shape)}: give a data '
                    'set of uint8 images of (H, W, C)'
                )
            if first and image.shape != first[0].shape:
                raise LocalLearningError(
                    f'image {len(images)} is of {tuple(image.shape)} (H, W, C) and image 0 of '
                    f'{tuple(first[0].shape)}: images that lie on the device are of one size, put '
                    "a dict(type='Resize', scale=...) into the pipeline"
                )
            images.append(image)
            labels.append(int(info['gt_label']))
        if not images:
            raise LocalLearningError(f'{type(dataset).__name__} has no images: give other data')
        stacked = torch.stack(images).permute(0, 3, 1, 2).contiguous()
        batches = cls(
            stacked, torch.tensor(labels), batch_size, metainfo=dataset.metainfo, **kwargs
        )
        batches.dataset.loading = once
        batches.dataset.pipeline = dataset.pipeline
        return batches

    @property
    def sampler(self) -> 'DeviceBatches':
        """Where MMEngine looks for ``set_epoch``: this object."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose what is drawn next.

        Args:
            epoch: Number of the next pass over the data, from 0.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        count = len(self.images)
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def __iter__(self) -> Iterator[dict]:
        rng = np.random.default_rng([self.seed, self.epoch])
        self.epoch += 1
        count, device = len(self.images), self.images.device
        order = torch.from_numpy(rng.permutation(count)) if self.shuffle else torch.arange(count)
        # Drawn on the CPU, so that they are the same everywhere; copied once per epoch.
        there, *drawn = [t.to(device) for t in (order, *self.augmentation.draw(count, rng))]
        skip, self.skip = self.skip, 0
        for start in range(skip * self.batch_size, len(self) * self.batch_size, self.batch_size):
            part = slice(start, start + self.batch_size)
            chosen = there[part]
            inputs = self.augmentation.apply(self.images[chosen], *(one[part] for one in drawn))
            if self._normalization is not None:
                mean, std = self._normalization
                inputs = (inputs.float() - mean) / std
            yield dict(inputs=inputs, data_samples=self._samples(self.labels[chosen], order[part]))

    def _samples(self, labels: Tensor, indices: Tensor) -> list:
        from mmpretrain.structures import DataSample

        # Which images these are, for what remembers images over epochs.
        if self.joint_sample:
            return [DataSample(metainfo=dict(sample_idx=indices)).set_gt_label(labels)]
        size = tuple(self.images.shape[2:])
        metainfo = dict(img_shape=size, ori_shape=size)
        return [
            DataSample(metainfo=dict(metainfo, sample_idx=index)).set_gt_label(label)
            for label, index in zip(labels.split(1), indices.tolist())
        ]


class DeviceDataset:
    """What MMEngine and hooks look for behind a dataloader.

    Args:
        batches: The dataloader.

    Attributes:
        loading: Transforms that have run on the images before these went to the device.
    """

    def __init__(self, batches: DeviceBatches):
        self._batches = batches
        self._pipeline: Any = None
        self.loading: list = []

    def __len__(self) -> int:
        """Number of images."""
        return len(self._batches.images)

    @property
    def metainfo(self) -> dict:
        """The data set's."""
        return self._batches.metainfo

    @property
    def pipeline(self) -> Any:
        """The data set's pipeline. Hooks may set another: the next epoch is augmented by that.

        Raises:
            LocalLearningError: It has no form on the device, or makes other images to begin with.
        """
        return self._pipeline

    @pipeline.setter
    def pipeline(self, pipeline: Any) -> None:
        once, pad, crop, flip_prob = _split_pipeline(pipeline)
        if list(map(repr, once)) != list(map(repr, self.loading)):
            raise LocalLearningError(
                f'the pipeline is switched to one that makes its images by {once}, and those on '
                f'the device are made by {self.loading}: switch what follows alone, or set '
                'train_cfg.type=EpochBasedTrainLoop'
            )
        size = tuple(self._batches.images.shape[2:])
        if crop is not None and tuple(crop.crop_size) != size:
            raise LocalLearningError(
                f'RandomCrop(crop_size={tuple(crop.crop_size)}) does not fit images of {size} px: '
                'crops on the device are as large as the images, set crop_size to that'
            )
        self._batches.augmentation = Augmentation(
            padding=getattr(pad or crop, 'padding', None) or 0,
            flip_prob=flip_prob,
            reflect=pad is not None,
        )
        self._pipeline = pipeline


def _split_pipeline(pipeline) -> Tuple[List, object, object, float]:
    """The transforms that run once, ReflectPad and RandomCrop, and how often images are flipped."""
    from mmcv.transforms import LoadImageFromFile, RandomFlip, Resize
    from mmpretrain.datasets.transforms import CenterCrop, PackInputs, RandomCrop, ResizeEdge

    from .classification import ReflectPad

    once, pad, crop, flip_prob = [], None, None, 0.0
    for transform in pipeline.transforms:
        kind = type(transform)
        if kind is PackInputs:
            continue
        if kind is ReflectPad and pad is crop is None:
            pad = transform
        elif kind is RandomCrop and crop is None and _is_plain_crop(transform, pad):
            crop = transform
        elif kind is RandomFlip and not flip_prob and _is_plain_flip(transform):
            flip_prob = transform.prob
        elif (
            pad is crop is None
            and not flip_prob
            and isinstance(transform, (LoadImageFromFile, Resize, ResizeEdge, CenterCrop))
        ):
            once.append(transform)
        else:
            raise LocalLearningError(
                f'{transform!r} in the pipeline has no form on the device: leave it out, or train '
                'with a dataloader. On the device go RandomCrop with one padding of value '
                '0 or behind ReflectPad, horizontal RandomFlip, and before these loading, resizing '
                'and CenterCrop'
            )
    if pad is not None and crop is None:
        raise LocalLearningError(
            f'{pad!r} in the pipeline has no RandomCrop behind it, and training on the device '
            'needs images of one size: add that, or train with a dataloader'
        )
    return once, pad, crop, flip_prob


def _is_plain_crop(crop, pad) -> bool:
    # Its padding_mode has no say: mmpretrain pads by one value.
    return (
        isinstance(crop.padding or 0, int)
        and not crop.pad_val
        and not crop.pad_if_needed
        and not (crop.padding and pad)
    )


def _is_plain_flip(flip) -> bool:
    return isinstance(flip.prob, (int, float)) and flip.direction == 'horizontal'


def _with_progress(dataset, indices: Sequence[int]) -> Iterator[dict]:
    """Items of a data set as its pipeline gets them, with a bar on a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(
        (dataset.get_data_info(i) for i in indices),
        description='Reading images',
        total=len(indices),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
