"""A batch that a model trains on without a data set: random images, targets of the right form."""

from functools import partial
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor, nn

from ..config import backbone_key, type_name
from ..errors import LocalLearningError

Shape = Tuple[int, int, int, int]

# Of which a batch consists where a config doesn't say it.
DEFAULT_IMAGES, DEFAULT_HEIGHT, DEFAULT_WIDTH = 2, 256, 256
BOXES_PER_IMAGE = 8
# What detectors that read text are told to find.
CLASS_NAMES = tuple('abcdefgh')


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
    if isinstance(value, int) and not isinstance(value, bool) and value > 1:
        return [(value, value)]
    if not isinstance(value, (list, tuple)):
        return []
    if len(value) == 2 and all(isinstance(one, int) and one > 1 for one in value):
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
        ``inputs``, uint8 images, and ``data_samples``.

    Raises:
        LocalLearningError: The task is another one, or the shape can't be.

    Example:
        >>> data = synthetic_batch(model, (2, 3, 64, 64))
        >>> losses = model.train_step(data, optim_wrapper)
    """
    classes = [c.__name__ for c in type(model).__mro__]
    targets = next((_TARGETS[name] for name in classes if name in _TARGETS), None)
    # Those that train adversarially or on videos take more, or in another form.
    if targets is None or targets is _target_images and not _learns_pairs(model):
        raise LocalLearningError(
            f'no synthetic batch for a {classes[0]}: give the config of a detector of mmdet, of an '
            "image classifier of mmpretrain, of a segmentor of mmseg, or of mmagic's BaseEditModel"
        )
    images, channels, height, width = _checked(shape, model)
    generator = torch.Generator().manual_seed(seed)
    inputs = [
        torch.randint(0, 256, (channels, height, width), generator=generator, dtype=torch.uint8)
        for _ in range(images)
    ]
    samples = targets(model, (height, width), generator, images)
    for index, sample in enumerate(samples):
        sample.set_metainfo(dict(sample_idx=index))  # as datasets do
    return dict(inputs=inputs, data_samples=samples)


def single_images(batch: dict) -> List[dict]:
    """The images of a batch, each as a batch of its own.

    Args:
        batch: From :func:`synthetic_batch`.
    """
    return [
        {key: value[i : i + 1] for key, value in batch.items()} for i in range(len(batch['inputs']))
    ]


def _checked(shape: Sequence[int], model: nn.Module) -> Sequence[int]:
    text = '×'.join(map(str, shape))
    if len(shape) != 4 or any(size < 1 for size in shape):
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


def _detection_sample(
    model: nn.Module, size: Tuple[int, int], generator: torch.Generator
) -> BaseDataElement:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    height, width = size
    count = BOXES_PER_IMAGE
    limits = torch.tensor([width, height])
    corner = torch.rand(count, 2, generator=generator) * limits * 0.5
    extent = (0.1 + 0.4 * torch.rand(count, 2, generator=generator)) * limits
    boxes = torch.cat([corner, corner + extent], 1)
    sample = DetDataSample(
        metainfo=dict(
            img_id=0,
            img_path='',
            img_shape=size,
            ori_shape=size,
            batch_input_shape=size,
            pad_shape=size,
            scale_factor=(1.0, 1.0),
            flip=False,
            flip_direction=None,
            border=(0, height, 0, width),
        )
    )
    classes = _thing_classes(model)
    if hasattr(model, 'language_model'):
        classes = min(classes, len(CLASS_NAMES))
        sample.set_metainfo(dict(text=CLASS_NAMES))
    labels = torch.randint(0, classes, (count,), generator=generator)
    sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
    sample.ignored_instances = InstanceData(
        bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
    )
    if hasattr(model, 'roi_head') and not model.with_rpn:
        # Fast R-CNN's proposals come with the data.
        sample.proposals = InstanceData(bboxes=boxes.clone())
    names = {part for name, _ in model.named_modules() for part in name.split('.')}
    if any('mask' in name for name in names) or _pads(model, 'mask'):
        masks = np.zeros((count, height, width), dtype=np.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.round().int().tolist()):
            mask[top : bottom + 1, left : right + 1] = 1
        sample.gt_instances.masks = BitmapMasks(masks, height, width)
    if any('semantic' in name or 'panoptic' in name for name in names) or _pads(model, 'seg'):
        sample.gt_sem_seg = PixelData(
            sem_seg=torch.randint(0, _map_classes(model), (1, height, width), generator=generator)
        )
    return sample


def _classification_sample(
    model: nn.Module, size: Tuple[int, int], generator: torch.Generator
) -> BaseDataElement:
    from mmpretrain.structures import DataSample

    label = int(torch.randint(0, _num_classes(model.modules()), (), generator=generator))
    return DataSample(metainfo=dict(img_shape=size, ori_shape=size)).set_gt_label(label)


def _segmentation_sample(
    model: nn.Module, size: Tuple[int, int], generator: torch.Generator
) -> BaseDataElement:
    from mmseg.structures import SegDataSample

    # It would pad the images to the size of the config's crops.
    model.data_preprocessor.size, model.data_preprocessor.size_divisor = size, None
    sample = SegDataSample(
        metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size, img_path='')
    )
    labels = torch.randint(0, _num_classes(model.modules()), (1, *size), generator=generator)
    return sample.set_data(dict(gt_sem_seg=PixelData(data=labels))) or sample


def _learns_pairs(model: nn.Module) -> bool:
    owners = {
        name: next((c for c in type(model).__mro__ if name in vars(c)), object)
        for name in ('forward_train', 'train_step')
    }
    return {name: owner.__name__ for name, owner in owners.items()} == dict(
        forward_train='BaseEditModel', train_step='BaseModel'
    )


def _target_images(
    model: nn.Module, size: Tuple[int, int], generator: torch.Generator, images: int
) -> List[BaseDataElement]:
    from mmagic.structures import DataSample

    network = model.generator
    channels = model.data_preprocessor.mean.numel()
    image = next(network.parameters()).new_zeros(1, channels, *size)
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            shape = network(image).shape[1:]
    except (RuntimeError, AssertionError) as error:
        reason = ' '.join(str(error).split())[:160]
        raise LocalLearningError(
            f'{type(network).__name__} makes no image of {"×".join(map(str, image.shape[1:]))} '
            f'({reason}): give another shape'
        ) from error
    finally:
        network.train(training)
    return [
        DataSample(gt_img=torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8))
        for _ in range(images)
    ]


def _one_by_one(
    sample: Callable,
    model: nn.Module,
    size: Tuple[int, int],
    generator: torch.Generator,
    images: int,
) -> List[BaseDataElement]:
    return [sample(model, size, generator) for _ in range(images)]


# By the class that all models of a task descend from, so that no package is imported to look.
_TARGETS: Dict[str, Callable] = {
    'BaseDetector': partial(_one_by_one, _detection_sample),
    'BaseClassifier': partial(_one_by_one, _classification_sample),
    'BaseSegmentor': partial(_one_by_one, _segmentation_sample),
    'BaseEditModel': _target_images,
}


def _pads(model: nn.Module, what: str) -> bool:
    return bool(getattr(getattr(model, 'data_preprocessor', None), f'pad_{what}', False))


def _thing_classes(model: nn.Module) -> int:
    """Classes that boxes have: a panoptic detector knows more."""
    counts = [getattr(part, 'num_things_classes', None) for part in model.modules()]
    things = max((count for count in counts if isinstance(count, int)), default=0)
    if things:
        return things
    # Of mmdet's heads for semantic maps, some tell how many classes these have.
    return _num_classes(part for name, part in model.named_modules() if 'semantic' not in name)


def _map_classes(model: nn.Module) -> int:
    """Classes that a detector's semantic map has."""
    heads = [part for name, part in model.named_modules() if name.endswith('semantic_head')]
    return _num_classes(heads or model.modules())


def _num_classes(parts: Iterable[nn.Module]) -> int:
    # A two-stage detector's RPN has one class of its own beside those of the data set.
    return max(
        (
            m.num_classes
            for m in parts
            if isinstance(getattr(m, 'num_classes', None), int) and m.num_classes > 0
        ),
        default=1,
    )
