"""The photos that scikit-image and scikit-learn install, and their split and licences."""

from importlib.util import find_spec
from pathlib import Path
from typing import List, NamedTuple

from PIL import Image

from ..errors import LocalLearningError


class Photo(NamedTuple):
    """One photo.

    Args:
        split: ``'train'`` or ``'val'``.
        package: Import name of the package that installs it.
        file: Path below the package's folder.
        license: Id in :data:`LICENSES`.
        source: Who made it, and where it comes from.
    """

    split: str
    package: str
    file: str
    license: int
    source: str


# Only photographs whose source states a licence; no drawings, no printed text, one picture per
# scene. The split is fixed, not drawn, so that results of different seeds stay comparable and
# validation holds a colour scene, a close-up, a grey photo and a texture.
PHOTOS = {
    'astronaut': Photo(
        'train',
        'skimage',
        'data/astronaut.png',
        1,
        'NASA, Eileen Collins, https://flic.kr/p/r9qvLn',
    ),
    'brick': Photo(
        'train',
        'skimage',
        'data/brick.png',
        2,
        'CC0Textures, https://cc0textures.com/view.php?tex=Bricks25',
    ),
    'cell': Photo(
        'train',
        'skimage',
        'data/cell.png',
        2,
        'P. Mueller et al., https://doi.org/10.1364/OE.26.010729',
    ),
    'chelsea': Photo('train', 'skimage', 'data/chelsea.png', 2, 'Stefan van der Walt'),
    'china': Photo(
        'train',
        'sklearn',
        'datasets/images/china.jpg',
        3,
        'danielbuechele, https://www.flickr.com/photos/danielbuechele/6061409035/',
    ),
    'coins': Photo(
        'train',
        'skimage',
        'data/coins.png',
        1,
        'Brooklyn Museum, https://www.brooklynmuseum.org/opencollection/archives/image/51611',
    ),
    'grass': Photo(
        'train',
        'skimage',
        'data/grass.png',
        2,
        'linolafett, https://www.deviantart.com/linolafett/art/Grass-01-434853879',
    ),
    'hubble_deep_field': Photo(
        'train',
        'skimage',
        'data/hubble_deep_field.jpg',
        1,
        'NASA, http://hubblesite.org/newscenter/archive/releases/2012/37/image/a/',
    ),
    'ihc': Photo(
        'train', 'skimage', 'data/ihc.png', 1, 'Center for Microscopy And Molecular Imaging'
    ),
    'retina': Photo(
        'train',
        'skimage',
        'data/retina.jpg',
        2,
        'Mikael Haggstrom, https://commons.wikimedia.org/wiki/'
        'File:Fundus_photograph_of_normal_left_eye.jpg',
    ),
    'rocket': Photo(
        'train',
        'skimage',
        'data/rocket.jpg',
        1,
        'SpaceX, https://www.flickr.com/photos/spacexphotos/16511594820/',
    ),
    'camera': Photo('val', 'skimage', 'data/camera.png', 2, 'Lav Varshney'),
    'coffee': Photo('val', 'skimage', 'data/coffee.png', 2, 'Rachel Michetti'),
    'flower': Photo(
        'val',
        'sklearn',
        'datasets/images/flower.jpg',
        3,
        'vultilion, https://www.flickr.com/photos/vultilion/6056698931/',
    ),
    'gravel': Photo(
        'val',
        'skimage',
        'data/gravel.png',
        2,
        'CC0Textures, https://cc0textures.com/view.php?tex=Gravel04',
    ),
}
LICENSES = [
    dict(
        id=1,
        name='Public domain, or no known copyright restrictions',
        url='https://creativecommons.org/publicdomain/mark/1.0/',
    ),
    dict(id=2, name='CC0 1.0', url='https://creativecommons.org/publicdomain/zero/1.0/'),
    dict(id=3, name='CC BY 2.0', url='https://creativecommons.org/licenses/by/2.0/'),
    dict(id=4, name='CC BY 4.0', url='https://creativecommons.org/licenses/by/4.0/'),
]


def photo_names(split: str) -> List[str]:
    """Names of the photos of a split, sorted.

    Args:
        split: ``'train'`` or ``'val'``.
    """
    return sorted(name for name, photo in PHOTOS.items() if photo.split == split)


def load_photo(name: str) -> Image.Image:
    """Read a photo as RGB.

    Args:
        name: A key of :data:`PHOTOS`.

    Raises:
        LocalLearningError: The package that brings it is missing.

    Example:
        >>> load_photo('chelsea').size
        (451, 300)
    """
    photo = PHOTOS[name]
    # Found without importing the package, and without pooch, which skimage.data would ask to
    # download what is not there.
    spec = find_spec(photo.package)
    path = Path(spec.submodule_search_locations[0]) / photo.file if spec else None
    if path is None or not path.is_file():
        package = dict(skimage='scikit-image', sklearn='scikit-learn')[photo.package]
        raise LocalLearningError(
            f'the photo {name} comes with {package} but is not installed: '
            f'pip install --force-reinstall {package}'
        )
    with Image.open(path) as image:
        return image.convert('RGB')
