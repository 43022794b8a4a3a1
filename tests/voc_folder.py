"""A small folder in PASCAL VOC's form that the tests spoil."""

from pathlib import Path
from typing import Sequence

from PIL import Image

OBJECT = (
    '<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>'
    '<xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax>'
    '</bndbox></object>'
)
SIZE = (64, 48)
# A good file for each image.
GOOD = {
    'a': [('cat', (1, 1, 30, 40))],
    'b': [('dog', (5, 5, 64, 48)), ('cat', (10, 10, 20, 30))],
    'c': [('dog', (0, 0, 12, 20))],
    'd': [('cat', (20, 20, 60, 40))],
}


def annotation(objects: Sequence[tuple], size: str = None, difficult: str = '0') -> str:
    """The text of an annotation file."""
    size = size or f'<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height></size>'
    items = ''.join(OBJECT.format(name=name, box=box, difficult=difficult) for name, box in objects)
    return f'<annotation>{size}{items}</annotation>'


def write_voc(root: Path) -> Path:
    """Write the good folder; returns its list of images."""
    for folder in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (root / folder).mkdir(parents=True)
    for name, objects in GOOD.items():
        Image.new('RGB', SIZE).save(root / f'JPEGImages/{name}.jpg')
        (root / f'Annotations/{name}.xml').write_text(annotation(objects))
    names = root / 'ImageSets/Main/train.txt'
    names.write_text('\n'.join(GOOD) + '\n\n')
    return names
