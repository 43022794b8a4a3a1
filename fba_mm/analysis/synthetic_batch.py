"""A batch that a model trains on without a data set: random images, targets of the right form."""

from typing import Any, Iterator, List, Optional, Sequence, Tuple

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..arguments import is_count
from ..config import type_name
from ..errors import LocalLearningError
from ..tasks import backbone_key, task_of_model

Shape = Tuple[int, int, int, int]

# Of which a batch consists where a config doesn't say it.
DEFAULT_IMAGES, DEFAULT_HEIGHT, DEFAULT_WIDTH = 2, 256, 256


def batch_shape(cfg: Config) -> Shape:
    """The shape of a config's training batches, as far as the config tells.

    The size is that of the last transform in the train pipeline that sets one, the largest where it
    chooses among several.

    Args:
        cfg: A training config.

    Returns:
        (images, channels, height, width), with 2, 3, 256 and 256 for what isn't told. Channels are
        the backbone's ``in_channels``, or else as many as the means of the data_preprocessor.

    Example:
        >>> batch_shape(load_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'))
        (2, 3, 800, 1333)
    """
    dataloader = cfg.get('train_dataloader') or {}
    sampler = dataloader.get('batch_sampler') or {}
    images = dataloader.get('batch_size') or sampler.get('batch_size') or DEFAULT_IMAGES
    height, width, scale = DEFAULT_HEIGHT, DEFAULT_WIDTH, 1
    for transform in _transforms(dataloader.get('dataset')):
        # mmagic's transforms find the scale among the values of a sample.
        scale = (transform.get('dictionary') or {}).get('scale', scale)
        height, width = _output_size(transform, scale) or (height, width)
    return images, _channels(cfg), height, width


def _channels(cfg: Config) -> int:
    model = cfg.get('model') or {}
    network = model.get(backbone_key(model)) or {}
    if not isinstance(network, dict):
        network = {}
    if type_name(network.get('type')) == 'LocalBackbone':
        network = network['backbone']
    channels = network.get('in_channels')
    if isinstance(channels, int):
        return channels
    preprocessor = model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    mean = preprocessor.get('mean')
    return len(mean) if isinstance(mean, (list, tuple)) else 3


def _transforms(part: Any) -> Iterator[dict]:
    """The transforms of a dataset, those of the datasets inside it first."""
    if isinstance(part, (list, tuple)):
        for item in part:
            yield from _transforms(item)
    elif isinstance(part, dict):
        if 'type' in part:
            yield part
        for key in ('dataset', 'datasets', 'pipeline', 'transforms'):
            yield from _transforms(part.get(key))


def _output_size(transform: dict, scale: int = 1) -> Optional[Tuple[int, int]]:
    """(height, width) of what a transform returns, if it is one that sets them.

    Args:
        transform: Config of the transform.
        scale: Pixels of the target per pixel of the image, in super-resolution.
    """
    kind = type_name(transform.get('type'))
    if isinstance(transform.get('gt_patch_size'), int):
        return (transform['gt_patch_size'] // scale,) * 2
    if not any(word in kind for word in ('Resize', 'Crop', 'Pad', 'Mosaic')):
        return None
    # MMCV writes scales as (width, height), sizes to crop and to pad to as (height, width).
    for key, flipped in (
        ('scale', True),
        ('scales', True),
        ('img_scale', True),
        ('crop_size', False),
        ('size', False),
    ):
        sizes = _sizes(transform.get(key))
        if sizes:
            height, width = max(
                (size[::-1] if flipped else size for size in sizes),
                key=lambda size: size[0] * size[1],
            )
            # What keeps its proportions is told the long and the short side, in either order.
            lying = flipped and (transform.get('keep_ratio') or 'Choice' in kind)
            return (min(height, width), max(height, width)) if lying else (height, width)
    return None


def _sizes(value: Any) -> List[Tuple[int, int]]:
    """A size, or several to choose from, as pairs."""
    if is_count(value, least=2):
        return [(value, value)]
    if not isinstance(value, (list, tuple)):
        return []
    if len(value) == 2 and all(is_count(one, least=2) for one in value):
        return [tuple(value)]
    return [size for one in value if isinstance(one, (list, tuple)) for size in _sizes(one)]


def synthetic_batch(model: nn.Module, shape: Shape, seed: int = 0) -> dict:
    """A batch in the form in which the model's dataloader would give it.

    Args:
        model: A detector of mmdet (boxes, and masks or a semantic map where it learns them), an
            image classifier of mmpretrain, a segmentor of mmseg, whose preprocessor is told to pad
            to this shape, or a model of mmagic that learns images from pairs.
        shape: (images, channels, height, width).
        seed: What the random numbers start from.

    Returns:
        ``inputs``, uint8 images, and ``data_samples``, on the model's device: a timed step should
        not copy them.

    Raises:
        LocalLearningError: The task is another one, or the shape can't be.

    Example:
        >>> step = TrainingStep(load_config('fba_mm::demo/retinanet_r34_fba_digits.py'))
        >>> losses = step(synthetic_batch(step.model, (2, 3, 64, 64)))
    """
    images, channels, height, width = _checked(shape, model)
    generator = torch.Generator().manual_seed(seed)
    inputs = [
        torch.randint(0, 256, (channels, height, width), generator=generator, dtype=torch.uint8)
        for _ in range(images)
    ]
    samples = task_of_model(model).synthetic_targets(model, (height, width), generator, images)
    for index, sample in enumerate(samples):
        sample.set_metainfo(dict(sample_idx=index))  # as datasets do
    device = next(model.parameters()).device
    return dict(
        inputs=[image.to(device) for image in inputs],
        data_samples=[sample.to(device) for sample in samples],
    )


def _checked(shape: Sequence[int], model: nn.Module) -> Sequence[int]:
    text = '×'.join(map(str, shape))
    if len(shape) != 4 or not all(map(is_count, shape)):
        raise LocalLearningError(
            f'a batch of {text}: give four positive numbers, images, channels, height, width'
        )
    mean = getattr(getattr(model, 'data_preprocessor', None), 'mean', None)
    if isinstance(mean, Tensor) and mean.numel() not in (1, shape[1]):
        raise LocalLearningError(
            f"a batch of {text} has {shape[1]} channels, the model's data_preprocessor takes "
            f'{mean.numel()}: give as many'
        )
    return shape
