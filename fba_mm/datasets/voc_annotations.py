"""Faults in the annotation files of a folder in PASCAL VOC's form, found before training.

mmdet's reader fails at the first file that it can't read, leaves out objects of classes that it
doesn't know without a word, and takes boxes as they are.
"""

import logging
import os
from typing import Collection, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple
from xml.etree import ElementTree

from mmengine.logging import print_log
from PIL import Image

from ..errors import LocalLearningError

# Where mmdet's XMLDataset looks unless it is told otherwise.
IMAGES, ANNOTATIONS = 'JPEGImages', 'Annotations'
# What comes of a file that is no XML, or in an encoding that the parser doesn't know.
_UNREADABLE = (ElementTree.ParseError, ValueError, LookupError, OSError)


class VOCFolder(NamedTuple):
    """Where a data set in PASCAL VOC's form lies, and what is expected in it.

    Attributes:
        ann_file: Text file with a name of an image in each line.
        root: Folder of the images' and the annotations' folders.
        classes: Names of the classes.
        leave_out: Names of classes whose objects are left out on purpose.
        img_subdir: Folder of the images below ``root``.
        ann_subdir: Folder of the annotation files below ``root``.

    Example:
        >>> folder = VOCFolder('ImageSets/Main/trainval.txt', '.', classes=('cat', 'dog'))
        >>> faults = folder.faults()
    """

    ann_file: str
    root: str
    classes: Sequence[str]
    leave_out: Sequence[str] = ()
    img_subdir: str = IMAGES
    ann_subdir: str = ANNOTATIONS

    def names(self) -> List[str]:
        """The names of the images, in the order of ``ann_file``; empty lines are none."""
        with open(self.ann_file, encoding='utf-8') as file:
            return [line.strip() for line in file if line.strip()]

    def paths(self, name: str) -> Tuple[str, str]:
        """Paths of an image and of its annotation file.

        Args:
            name: One of :meth:`names`.
        """
        return (
            os.path.join(self.root, self.img_subdir, f'{name}.jpg'),
            os.path.join(self.root, self.ann_subdir, f'{name}.xml'),
        )

    def faults(self) -> Dict[str, List[str]]:
        """What is wrong with each image that can't be learnt from as it is, by the image's name.

        Raises:
            LocalLearningError: There are no images at all.
        """
        names = self.names()
        if not names:
            raise LocalLearningError(
                f'{self.ann_file} names no images: write the name of one into each line'
            )
        known = set(self.classes) | set(self.leave_out)
        found = {name: list(_faults(*self.paths(name), known)) for name in names}
        return {name: faults for name, faults in found.items() if faults}

    def unknown_classes(self, names: Iterable[str]) -> List[str]:
        """Classes that files have and that are neither known nor left out.

        Args:
            names: Of images; files that can't be read have none.
        """
        found = set()
        for name in names:
            try:
                root = ElementTree.parse(self.paths(name)[1]).getroot()
            except _UNREADABLE:
                continue
            found.update(item.findtext('name') or '' for item in root.findall('object'))
        return sorted(found - {''} - set(self.classes) - set(self.leave_out))


def refuse_or_skip(folder: VOCFolder, on_fault: str, where: str) -> Collection[str]:
    """Report every faulty file of a folder; refuse to train on it, or tell what to skip.

    Args:
        folder: The folder.
        on_fault: ``'refuse'`` or ``'skip'``.
        where: The data set, in words.

    Returns:
        Names of the images to skip.

    Raises:
        LocalLearningError: There are faults and they are not to be skipped, or nothing is left;
            ``on_fault`` is another word.
    """
    if on_fault not in ('refuse', 'skip'):
        raise LocalLearningError(f"{where}: on_fault={on_fault!r}: give 'refuse' or 'skip'")
    faults = folder.faults()
    if not faults:
        return ()
    for name, reasons in faults.items():
        print_log(f'{folder.paths(name)[1]}: {"; ".join(reasons)}', 'current', logging.WARNING)
    total = len(folder.names())
    what = f'{where}: {len(faults)} of {total} images have faulty annotations'
    if on_fault == 'refuse':
        name, reasons = next(iter(faults.items()))
        unknown = folder.unknown_classes(faults)
        fix = 'fix them, or '
        if unknown:
            fix += (
                "train without the objects of other classes, type='fba_mm.CheckedVOCDataset', "
                f'leave_out={unknown}, or '
            )
        raise LocalLearningError(
            f'{what}, such as {folder.paths(name)[1]}: {reasons[0]}; all are listed above: {fix}'
            "leave these images out with type='fba_mm.CheckedVOCDataset', on_fault='skip'"
        )
    if len(faults) == total:
        raise LocalLearningError(f'{what}, and none is left: fix them')
    print_log(f"{what} and are left out, as on_fault='skip' asks", 'current', logging.WARNING)
    return faults.keys()


def _faults(image: str, annotations: str, known: Collection[str]) -> Iterator[str]:
    """What is wrong with one image's files."""
    if not os.path.isfile(image):
        yield f'its image {image} is missing'
    if not os.path.isfile(annotations):
        yield 'the file is missing'
        return
    if not os.path.getsize(annotations):
        yield 'the file is empty'
        return
    try:
        root = ElementTree.parse(annotations).getroot()
    except _UNREADABLE as error:
        yield f'it is no XML ({error})'
        return
    size = _size(root.find('size'), image)
    if size is None:
        yield 'it has no image size in whole positive numbers'
    for number, item in enumerate(root.findall('object'), 1):
        name = (item.findtext('name') or '').strip()
        place = f'object {number} ({name or "without a name"})'
        # mmdet compares names as they are, with the spaces around them.
        if item.findtext('name') not in known:
            yield f'{place} is of none of the {len(known)} known classes'
        difficult = item.find('difficult')
        if difficult is not None and not (difficult.text or '').strip().isdigit():
            yield f'{place} has difficult={difficult.text!r}, which is neither 0 nor 1'
        fault = _box_fault(item.find('bndbox'), size)
        if fault:
            yield f'{place} {fault}'


def _size(element: Optional[ElementTree.Element], image: str) -> Optional[Tuple[int, int]]:
    """(width, height) as the file has it, or the image itself where the file is silent."""
    if element is None:
        try:
            with Image.open(image) as picture:
                return picture.size
        except OSError:
            return None
    numbers = [(element.findtext(side) or '').strip() for side in ('width', 'height')]
    if not all(number.isdigit() and int(number) for number in numbers):
        return None
    return int(numbers[0]), int(numbers[1])


def _box_fault(
    element: Optional[ElementTree.Element], size: Optional[Tuple[int, int]]
) -> Optional[str]:
    sides = ('xmin', 'ymin', 'xmax', 'ymax')
    texts = [None if element is None else element.findtext(side) for side in sides]
    if not all(_is_number(text) for text in texts):
        missing = [side for side, text in zip(sides, texts) if not _is_number(text)]
        return f'has no number as {", ".join(missing)}'
    # As mmdet reads them.
    left, top, right, bottom = box = [int(float(text)) for text in texts]
    if right <= left or bottom <= top:
        return f'has a box without an area, {box}'
    # VOC counts from 1, many tools from 0: both are inside.
    if size is not None and (left < 0 or top < 0 or right > size[0] or bottom > size[1]):
        return f'has a box that leaves the image of {size[0]}×{size[1]}, {box}'
    return None


def _is_number(text: Optional[str]) -> bool:
    try:
        return abs(float(text)) < float('inf')
    except (TypeError, ValueError):
        return False
