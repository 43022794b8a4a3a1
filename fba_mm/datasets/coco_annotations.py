"""Faults in an annotation file in COCO's form, found before training.

mmdet's reader leaves out objects of categories that it doesn't know without a word, counts classes
anew where one that is named isn't there, and finds a missing image when its turn comes.
"""

import json
import logging
import os
from collections import Counter, defaultdict
from difflib import get_close_matches
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

from mmengine.logging import print_log

from ..errors import LocalLearningError

# What mmdet's reader asks for.
_OF_IMAGES = ('id', 'file_name', 'height', 'width')
_OF_ANNOTATIONS = ('image_id', 'category_id', 'bbox', 'area')


class COCOFile(NamedTuple):
    """An annotation file in COCO's form, and what is expected in it.

    Attributes:
        path: Of the file.
        images: Folder that the images' names start from.
        classes: Names of the classes.
        own_classes: Name of the data set's class, if its classes are that class's own.
        labelled: Whether objects are read: not for a test without annotations.
        masks: Whether their masks are, too.
        filter_empty: Whether images without objects of the classes are left out.
        min_size: Images with a shorter side than this are left out, px.

    Example:
        >>> COCOFile('instances_train.json', 'images', classes=('cat', 'dog')).check('train')
    """

    path: str
    images: str
    classes: Sequence[str]
    own_classes: Optional[str] = None
    labelled: bool = True
    masks: bool = False
    filter_empty: bool = False
    min_size: int = 0

    def check(self, where: str) -> None:
        """Refuse a file that can't be learned from as it is; log what is left out of it.

        Args:
            where: The data set, in words.

        Raises:
            LocalLearningError: Names the file, the first fault, how many there are, and how to fix
                it.
        """
        with open(self.path, encoding='utf-8') as file:
            content = json.load(file)
        place = f'{where}.ann_file: {self.path}'
        images, annotations, categories = self._lists(content, place)
        self._check_classes(categories, where)
        _refuse(place, 'images', _entries(images, _OF_IMAGES))
        _refuse(place, 'images', _repeated(images))
        if self.labelled:
            _refuse(place, 'annotations', self._annotation_faults(annotations, categories))
        ids = {one['id'] for one in categories if one['name'] in set(self.classes)}
        of_classes = [one for one in annotations if one.get('category_id') in ids]
        if self.labelled:
            self._tell(where, images, annotations, of_classes, categories)
        used = self._used(images, of_classes)
        if not used:
            raise LocalLearningError(
                f'{place} has no image with an object of the classes '
                f'{_names(self.classes)}: check the classes, or filter_cfg'
            )
        self._check_images(used, place)

    def _lists(self, content: Any, place: str) -> Tuple[list, list, list]:
        wanted = ['images', 'categories'] + ['annotations'] * self.labelled
        missing = [
            key
            for key in wanted
            if not isinstance(content, dict) or not isinstance(content.get(key), list)
        ]
        if missing:
            raise LocalLearningError(
                f"{place} has no list of {' and of '.join(missing)}: give a file in COCO's form, "
                'with images, annotations and categories'
            )
        if not content['images']:
            raise LocalLearningError(f'{place} lists no image: check that it is the right file')
        _refuse(place, 'categories', _entries(content['categories'], ('id', 'name')))
        _refuse(place, 'categories', _repeated(content['categories']))
        _refuse(place, 'categories', _repeated(content['categories'], 'name'))
        return content['images'], content.get('annotations') or [], content['categories']

    def _check_classes(self, categories: List[dict], where: str) -> None:
        names = [one['name'] for one in categories]
        unknown = [name for name in self.classes if name not in names]
        if not unknown:
            return
        if self.own_classes:
            raise LocalLearningError(
                f'{where}: {self.path} has no category {unknown[0]!r} and {len(unknown) - 1} '
                f'others of the {len(self.classes)} classes that {self.own_classes} has of its '
                f'own: name those of the data as metainfo=dict(classes={_names(names)})'
            )
        close = get_close_matches(str(unknown[0]), [str(name) for name in names], 1)
        meant = f', {close[0]!r} may be meant' if close else ''
        others = f' ({len(unknown) - 1} more are missing)' if len(unknown) > 1 else ''
        raise LocalLearningError(
            f'{where}.metainfo.classes has {unknown[0]!r}{others}, and the categories of '
            f'{self.path} are {_names(names)}{meant}: name classes as the file does'
        )

    def _annotation_faults(self, annotations: List[dict], categories: List[dict]) -> Iterator[str]:
        known = {one['id'] for one in categories}
        yield from _entries(annotations, _OF_ANNOTATIONS)
        for number, one in enumerate(annotations, 1):
            if not isinstance(one, dict) or any(key not in one for key in _OF_ANNOTATIONS):
                continue
            name = f'number {number} (id {one.get("id")}) has '
            if one['category_id'] not in known:
                yield f'{name}category_id={one["category_id"]!r}, which is no category'
            elif not _is_box(one['bbox']):
                yield f'{name}bbox={one["bbox"]!r}, which is not four numbers, x, y, width, height'
            elif self.masks and not one.get('segmentation'):
                yield f'{name}no segmentation, and the pipeline reads masks'
        yield from _repeated([one for one in annotations if isinstance(one, dict)])

    def _tell(
        self,
        where: str,
        images: List[dict],
        annotations: List[dict],
        of_classes: List[dict],
        categories: List[dict],
    ) -> None:
        """Log what is left out, and what looks as if it were not meant so."""
        counts = Counter(one['category_id'] for one in annotations)
        left = {
            one['name']: counts[one['id']] for one in categories if one['name'] not in self.classes
        }
        if left:
            _warn(
                f'{where}: {sum(left.values())} objects of {len(left)} categories that are not '
                f'among the classes are left out: {_names(left)}'
            )
        absent = [
            one['name']
            for one in categories
            if one['name'] in self.classes and not counts[one['id']]
        ]
        if absent:
            _warn(f'{where}: {self.path} has no object of {_names(absent)}')
        order = [one['name'] for one in categories if one['name'] in self.classes]
        if order != list(self.classes):
            _warn(
                f'{where}: the labels follow the order of the categories in {self.path}, '
                f'{_names(order)}, and metainfo.classes another one: results will bear wrong '
                'names'
            )
        ids = {one['id'] for one in images}
        homeless = sum(one['image_id'] not in ids for one in annotations)
        flat = sum(min(one['bbox'][2:]) < 1 or one['area'] <= 0 for one in of_classes)
        if homeless or flat:
            _warn(
                f'{where}: of {self.path}, {homeless} objects of images that it does not list '
                f'and {flat} whose boxes have no area are left out'
            )

    def _used(self, images: List[dict], of_classes: List[dict]) -> List[dict]:
        """The images that are left when mmdet has filtered them."""
        with_objects: Set[Any] = {one['image_id'] for one in of_classes}
        return [
            one
            for one in images
            if min(one['width'], one['height']) >= self.min_size
            and (not self.filter_empty or one['id'] in with_objects)
        ]

    def _check_images(self, images: List[dict], place: str) -> None:
        folders: Dict[str, List[str]] = defaultdict(list)
        for one in images:
            folder, name = os.path.split(os.path.join(self.images, one['file_name']))
            folders[folder].append(name)
        missing, others = [], {}
        for folder, names in folders.items():
            # One listing for each folder: asking for each file takes minutes on network storage.
            there = set(os.listdir(folder or '.')) if os.path.isdir(folder or '.') else set()
            lost = [name for name in names if name not in there]
            missing += [os.path.join(folder, name) for name in lost]
            if lost:
                others.update({name.lower(): name for name in there})
        if missing:
            name = others.get(os.path.basename(missing[0]).lower())
            hint = f' (there is {name})' if name else ''
            raise LocalLearningError(
                f'{place} lists {len(missing)} of {len(images)} images that do not exist, such as '
                f'{missing[0]}{hint}: put them there, take them out of the file, or check '
                'data_prefix.img'
            )


def _refuse(place: str, what: str, faults: Iterable[str]) -> None:
    faults = list(faults)
    if faults:
        others = f' ({len(faults) - 1} more have faults)' if len(faults) > 1 else ''
        raise LocalLearningError(f'{place}: of its {what}, {faults[0]}{others}: fix the file')


def _entries(entries: List[dict], keys: Sequence[str]) -> Iterator[str]:
    for number, one in enumerate(entries, 1):
        missing = [key for key in keys if not isinstance(one, dict) or key not in one]
        if missing:
            yield f'number {number} has no {", ".join(missing)}'


def _repeated(entries: List[dict], key: str = 'id') -> Iterator[str]:
    counts = Counter(one[key] for one in entries if key in one)
    if len(counts) < len(entries):
        for value, count in counts.items():
            if count > 1:
                yield f'{count} have {key}={value!r}'


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(side, (int, float)) and abs(side) < float('inf') for side in box)
    )


def _names(names: Iterable[str]) -> str:
    names = tuple(names)
    return str(names) if len(names) <= 12 else f'{str(names[:10])[:-1]}, … {len(names)} in all)'


def _warn(line: str) -> None:
    print_log(line, 'current', logging.WARNING)
