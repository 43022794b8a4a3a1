"""Detection of objects and their masks, by mmdet."""

import os
from typing import Mapping, Optional, Sequence

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.fileio import list_from_file
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import nn

from ..arguments import is_count
from ..config import type_name
from ..datasets.class_count import class_counts
from ..datasets.coco_annotations import COCOFile
from ..datasets.source import joined
from ..datasets.voc_annotations import ANNOTATIONS, IMAGES, VOCFolder, refuse_or_skip
from ..errors import LocalLearningError
from ..method_owner import descends_from, method_owner
from .task import Size, Task, num_classes_of, register_task

BOXES_PER_IMAGE = 8
# What detectors that read text are told to find.
CLASS_NAMES = tuple('abcdefgh')

# Of detectors whose data have boxes, which a light detector learns.
_BOX_HEADS = ('bbox_head', 'rpn_head', 'roi_head', 'mask_head')
# Others, and what has a whole detector inside.
_OTHER_HEADS = ('panoptic_head', 'detector')
# Losses that are sums over positions, and the settings with which they have no slices.
_SLICED_LOSSES = {
    'FocalLoss': dict(use_sigmoid=False, activated=True),
    'QualityFocalLoss': {},
    'VarifocalLoss': {},
}

# Of LightRetinaNet's neck and head, unless it is told otherwise.
_LIGHT_CHANNELS = 64


@register_task
class Detection(Task):
    """Boxes, masks and classes of the objects in each image."""

    name = 'detection'
    example = 'a detector of mmdet'
    models = ('BaseDetector',)
    heads = ('light', 'pooled')
    known_costs = dict(
        light='RetinaNet-R18 from scratch: none at equal epochs, 5 mAP at equal time; '
        'fine-tuned: none at equal epochs with K=2, up to 5 mAP with K=4'
    )
    dense_heads = ('rpn_head', 'bbox_head')
    large_heads = ('rpn_head',)

    def describes(self, cfg: Mapping) -> bool:
        """Whether the model has one of a detector's heads."""
        return any(name in cfg['model'] for name in (*_BOX_HEADS, *_OTHER_HEADS))

    def default_auxiliary(self, model: dict) -> str:
        """``'light'`` where the data have boxes and a neck makes levels of them."""
        # With one map to look at, a shared head would have to read every module's in its place.
        if 'bbox_head' in model and not any(model.get(name) for name in ('neck', 'roi_head')):
            return 'own'
        if self.light_head(model) is not None:
            return 'light'
        passes_tokens = type_name(model['backbone'].get('type')) in ('ViT', 'VisionTransformer')
        return 'shared' if passes_tokens else 'pooled'

    def light_head(self, model: dict) -> Optional[dict]:
        """A small RetinaNet, of half the neck's channels where these are few. See :class:`Task`."""
        classes = num_classes_of(model)
        if classes is None or not any(key in model for key in _BOX_HEADS):
            return None
        head = dict(type='LightRetinaNet', num_classes=classes)
        necks = model.get('neck') or ()
        widths = [
            neck.get('out_channels')
            for neck in (necks if isinstance(necks, (list, tuple)) else [necks])
        ]
        # As wide as the model's own neck, it would take nearly what that takes.
        if widths and is_count(widths[-1]) and widths[-1] // 2 in range(1, _LIGHT_CHANNELS):
            head.update(channels=widths[-1] // 2)
        return head

    def computes_in_slices(self, part: dict, package: str) -> bool:
        """Dense losses, and mask heads without batch norm. See :class:`Task`."""
        name = type_name(part.get('type'))
        if package != 'mmdet':
            return False
        if name in _SLICED_LOSSES:
            return not any(part.get(key) == value for key, value in _SLICED_LOSSES[name].items())
        return name == 'FCNMaskHead' and not (part.get('norm_cfg') or {}).get('type', '').endswith(
            'BN'
        )

    def synthetic_target(
        self, model: nn.Module, size: Size, generator: torch.Generator
    ) -> BaseDataElement:
        """Boxes, and masks or a semantic map where the model learns them. See :class:`Task`."""
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
            labels = torch.randint(0, _map_classes(model), (1, *size), generator=generator)
            sample.gt_sem_seg = PixelData(sem_seg=labels)
        return sample

    def check_dataset(self, dataset: dict, kind: Optional[type], where: str, model: dict) -> None:
        """Look at files in COCO's form, and at folders in PASCAL VOC's. See :class:`Task`."""
        if kind is not None and _is_coco_file(kind) and get_rank() == 0:
            _coco_file(dataset, kind, where).check(where)
        if kind is not None and _is_voc_folder(kind):
            on_fault = dataset.get('on_fault', 'refuse')
            refuse_or_skip(_voc_folder(dataset, kind, where), on_fault, where)

    def check_classes(
        self, dataset: dict, kind: Optional[type], where: str, model: nn.Module
    ) -> None:
        """Compare the head with what a data set in COCO's or VOC's form names. See :class:`Task`.

        A head for more classes than there are in COCO's form is common, and good.
        """
        expected = num_classes_of(model, skip=getattr(model, 'backbone', None))
        # A region proposal network alone has one class for all objects.
        if expected is None or descends_from(type(model), 'RPN'):
            return
        is_panoptic = descends_from(kind, 'CocoPanopticDataset')
        at_least = descends_from(kind, 'CocoDataset') and not is_panoptic
        if not at_least and not _is_voc_folder(kind):
            return
        for count, what in class_counts(dataset, kind):
            if count > expected or not at_least and count < expected:
                raise LocalLearningError(
                    f'{where}: {what}, but the head predicts {expected}: set its num_classes='
                    f"{count}, in the auxiliary networks too, or name the head's classes as "
                    'metainfo=dict(classes=(...))'
                )


def _pads(model: nn.Module, what: str) -> bool:
    return bool(getattr(getattr(model, 'data_preprocessor', None), f'pad_{what}', False))


def _thing_classes(model: nn.Module) -> int:
    """Classes that boxes have: a panoptic detector knows more."""
    counts = [getattr(part, 'num_things_classes', None) for part in model.modules()]
    things = max((count for count in counts if isinstance(count, int)), default=0)
    return things or max(num_classes_of(model) or 1, 1)


def _map_classes(model: nn.Module) -> int:
    """Classes that a detector's semantic map has."""
    heads = [part for name, part in model.named_modules() if name.endswith('semantic_head')]
    return max([1, *(num_classes_of(head) or 1 for head in heads or [model])])


def _is_voc_folder(kind: Optional[type]) -> bool:
    # A class that lists its files in its own way, as WIDERFaceDataset does, has another layout.
    return method_owner(kind, 'load_data_list').__name__ in ('XMLDataset', 'CheckedVOCDataset')


def _is_coco_file(kind: Optional[type]) -> bool:
    # Panoptic segmentation reads files in another way.
    methods = ('load_data_list', 'parse_data_info')
    return all(method_owner(kind, name).__name__ == 'CocoDataset' for name in methods)


def _voc_folder(dataset: dict, kind: type, where: str) -> VOCFolder:
    root = dataset.get('data_root') or ''
    prefix = (dataset.get('data_prefix') or {}).get('sub_data_root', '')
    classes = _class_names(dataset, kind, where)
    ann_file = joined(root, dataset.get('ann_file') or '')
    if not os.path.isfile(ann_file):
        raise LocalLearningError(
            f'{where}.ann_file={dataset.get("ann_file")!r} is no file: give the text file that '
            'names the images, as VOC2007/ImageSets/Main/trainval.txt'
        )
    return VOCFolder(
        ann_file,
        joined(root, prefix) or root,
        classes,
        dataset.get('leave_out', ()),
        dataset.get('img_subdir', IMAGES),
        dataset.get('ann_subdir', ANNOTATIONS),
    )


def _coco_file(dataset: dict, kind: type, where: str) -> COCOFile:
    root = dataset.get('data_root') or ''
    prefix = dataset.get('data_prefix') or {}
    if 'img' not in prefix:
        raise LocalLearningError(
            f"{where}.data_prefix has no img: set data_prefix=dict(img='FOLDER/'), the folder that "
            'the names of images start from'
        )
    ann_file = joined(root, dataset.get('ann_file') or '')
    if not os.path.isfile(ann_file):
        raise LocalLearningError(
            f'{where}.ann_file={dataset.get("ann_file")!r} is no file: give the JSON file with '
            'images, annotations and categories'
        )
    own = not (dataset.get('metainfo') or {}).get('classes')
    testing = bool(dataset.get('test_mode'))
    filters = {} if testing else dataset.get('filter_cfg') or {}
    # A test may go without objects, an evaluation needs them.
    reads = [
        step
        for step in dataset.get('pipeline') or []
        if step.get('with_bbox') or step.get('with_mask')
    ]
    return COCOFile(
        ann_file,
        joined(root, prefix['img']) or root,
        _class_names(dataset, kind, where),
        kind.__name__ if own else None,
        not testing or bool(reads),
        any(step.get('with_mask') for step in reads),
        bool(filters.get('filter_empty_gt')),
        filters.get('min_size', 0),
    )


def _class_names(dataset: dict, kind: type, where: str) -> Sequence[str]:
    classes = (dataset.get('metainfo') or {}).get('classes') or (
        getattr(kind, 'METAINFO', None) or {}
    ).get('classes')
    if not classes:
        raise LocalLearningError(
            f'{where}: {kind.__name__} has no classes of its own: name those of the data as '
            'metainfo=dict(classes=(...))'
        )
    if isinstance(classes, str):
        if not os.path.isfile(classes):
            raise LocalLearningError(
                f'{where}.metainfo.classes={classes!r} is no file with names: a single class is '
                f'written with a comma, ({classes!r}, )'
            )
        classes = list_from_file(classes)
    return classes
