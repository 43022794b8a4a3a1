"""Pairs of photos: what lies where, and that nothing of a user's is lost."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fba_mm.datasets import build_photo_pairs, photos
from fba_mm.errors import LocalLearningError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def carried(tmp_path_factory):
    return build_photo_pairs(tmp_path_factory.mktemp('pairs') / 'photos')


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / 'pictures'
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (('a.png', (50, 61, 3)), ('b.jpg', (36, 24, 3)), ('grey.png', (40, 40))):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
    (folder / 'notes.txt').write_text('no picture')
    return folder


def sizes(folder):
    return {path.name: Image.open(path).size for path in folder.glob('*.png')}


@pytest.mark.slow
@pytest.mark.parametrize('split', ['train', 'val'])
def test_pairs_have_the_same_names_and_fitting_sizes(split, carried):
    high = sizes(carried / split / 'GTmod12')
    assert high and json.loads((carried / 'dataset.json').read_text())['files'][split] == len(high)
    for scale in (2, 3, 4):
        low = sizes(carried / split / f'LRbicx{scale}')
        assert low == {name: (w // scale, h // scale) for name, (w, h) in high.items()}
        assert all(w % 12 == h % 12 == 0 for w, h in high.values())
    if split == 'train':
        assert set(high.values()) == {(192, 192)}


def test_no_photo_is_in_both_splits(carried):
    train, val = (
        {path.stem.split('_0')[0] for path in (carried / split / 'GTmod12').iterdir()}
        for split in ('train', 'val')
    )
    assert train == set(photos.photo_names('train')) and val == set(photos.photo_names('val'))
    assert not train & val


def test_a_tile_shows_the_same_place_in_all_resolutions(carried):
    """Made small, a tile is its low-resolution partner, but for what lay around it."""
    for path in sorted((carried / 'train/GTmod12').glob('c*_00[0-3].png')):
        tile = Image.open(path)
        for scale in (2, 3, 4):
            low = np.asarray(Image.open(carried / f'train/LRbicx{scale}' / path.name), dtype=float)
            own = np.asarray(tile.resize((192 // scale,) * 2, Image.BICUBIC), dtype=float)
            assert np.abs(low - own)[4:-4, 4:-4].max() <= 1


def test_tiles_cover_a_photo(carried):
    photo = np.asarray(photos.load_photo('chelsea'))[:300, :444]
    seen = np.zeros(photo.shape[:2], bool)
    for path in (carried / 'train/GTmod12').glob('chelsea_*.png'):
        tile = np.asarray(Image.open(path))
        ((y, x),) = [
            (y, x)
            for y in (0, 300 - 192)
            for x in (0, 192, 444 - 192)
            if np.array_equal(photo[y : y + 192, x : x + 192], tile)
        ]
        seen[y : y + 192, x : x + 192] = True
    assert seen.all()


def test_pictures_of_ones_own(pictures, tmp_path):
    root = build_photo_pairs(tmp_path / 'Set3', images=pictures)
    assert sizes(root / 'GTmod12') == {'a.png': (60, 48), 'b.png': (24, 36), 'grey.png': (36, 36)}
    assert sizes(root / 'LRbicx3') == {'a.png': (20, 16), 'b.png': (8, 12), 'grey.png': (12, 12)}
    a = np.asarray(Image.open(pictures / 'a.png'))
    np.testing.assert_array_equal(np.asarray(Image.open(root / 'GTmod12/a.png')), a[:48, :60])
    assert Image.open(root / 'GTmod12/grey.png').mode == 'RGB'


def test_the_second_call_finds_it(pictures, tmp_path):
    root = build_photo_pairs(tmp_path / 'set', images=pictures)
    before = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
    assert build_photo_pairs(tmp_path / 'set', images=pictures) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob('*')} == before


def test_what_lies_there_is_kept(pictures, tmp_path):
    (tmp_path / 'own').mkdir()
    (tmp_path / 'own/thesis.txt').write_text('all my work')
    for overwrite in (False, True):
        with pytest.raises(LocalLearningError, match='no build wrote.*another out_dir'):
            build_photo_pairs(tmp_path / 'own', images=pictures, overwrite=overwrite)
    assert (tmp_path / 'own/thesis.txt').read_text() == 'all my work'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['own', 'pictures']


def test_other_settings_and_damage(pictures, tmp_path):
    root = build_photo_pairs(tmp_path / 'set', images=pictures)
    with pytest.raises(LocalLearningError, match='other settings.*overwrite=True'):
        build_photo_pairs(root, images=pictures, tile_size=12)
    build_photo_pairs(root, images=pictures, tile_size=12, overwrite=True)
    assert set(sizes(root / 'GTmod12').values()) == {(12, 12)}
    next((root / 'LRbicx2').iterdir()).unlink()
    with pytest.raises(LocalLearningError, match='damaged.*overwrite=True'):
        build_photo_pairs(root, images=pictures, tile_size=12)
    build_photo_pairs(root, images=pictures, tile_size=12, overwrite=True)


@pytest.mark.parametrize(
    'own',
    [
        'ann_file.txt',
        'LRbicx2/notes.txt',
        'results/1.png',
        'GTmod12/mine.png',
        'LRbicx2/{built}_000.png',
    ],
)
def test_a_build_is_not_replaced_with_a_users_files_in_it(own, pictures, tmp_path):
    root = build_photo_pairs(tmp_path / 'set', images=pictures)
    own = own.format(built=min((root / 'GTmod12').iterdir()).stem)
    (root / own).parent.mkdir(exist_ok=True)
    (root / own).write_text('mine')
    with pytest.raises(LocalLearningError, match=f'no build wrote .{own.split("/")[0]}.*move them'):
        build_photo_pairs(root, images=pictures, tile_size=12, overwrite=True)
    assert (root / own).read_text() == 'mine' and sizes(root / 'LRbicx4')


@pytest.mark.parametrize('tile_size', [0, 10, 12.5, True, '192'])
def test_tile_sizes_that_no_scale_divides(tile_size, tmp_path):
    with pytest.raises(LocalLearningError, match='tile_size=.*multiple of 12'):
        build_photo_pairs(tmp_path / 'set', tile_size=tile_size)


def test_pictures_that_are_none(pictures, tmp_path):
    with pytest.raises(LocalLearningError, match='holds no picture'):
        build_photo_pairs(tmp_path / 'set', images=tmp_path / 'nothing')
    (pictures / 'a.jpg').write_bytes(b'')
    with pytest.raises(LocalLearningError, match='several pictures named a'):
        build_photo_pairs(tmp_path / 'set', images=pictures)
    (pictures / 'a.png').unlink()
    with pytest.raises(LocalLearningError, match='a.jpg cannot be read'):
        build_photo_pairs(tmp_path / 'set', images=pictures)
    Image.new('RGB', (11, 40)).save(pictures / 'a.jpg')
    with pytest.raises(LocalLearningError, match='a has 40x11 px, less than 12'):
        build_photo_pairs(tmp_path / 'set', images=pictures)
    # Nothing is left behind of builds that failed.
    assert sorted(p.name for p in tmp_path.iterdir()) == ['pictures']


@pytest.mark.slow
def test_the_tool(pictures, tmp_path):
    tool = 'tools/dataset_converters/build_photo_pairs.py'

    def run(*arguments):
        return subprocess.run(
            [sys.executable, tool, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
        )

    result = run(tmp_path / 'set', '--images', pictures)
    assert result.returncode == 0, result.stderr
    assert '3 pairs' in result.stdout
    result = run(tmp_path / 'set', '--images', pictures, '--tile-size', 7)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith('error: --tile-size 7: give')
