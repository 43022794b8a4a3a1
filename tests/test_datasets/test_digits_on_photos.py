import json
import os
import runpy
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from fba_mm.datasets import DIGIT_CLASSES, build_digits_on_photos, digits_on_photos, photos
from fba_mm.errors import LocalLearningError

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools' / 'dataset_converters' / 'build_digits.py'
HEIGHT, WIDTH = 144, 192
SMALL = dict(num_train=3, num_val=2, image_size=64)


def annotations_of(root, split):
    return json.loads((root / 'annotations' / f'instances_{split}.json').read_text())


def contents(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob('*') if p.is_file()}


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    return build_digits_on_photos(
        tmp_path_factory.mktemp('digits') / 'set',
        num_train=30,
        num_val=16,
        image_size=(HEIGHT, WIDTH),
        seed=1,
    )


@pytest.fixture(scope='module')
def sources():
    """Every bundled photo by its file name, read without the package under test."""
    skimage = pytest.importorskip('skimage')
    sklearn = pytest.importorskip('sklearn')
    folders = [
        Path(skimage.__file__).parent / 'data',
        Path(sklearn.__file__).parent / 'datasets' / 'images',
    ]
    return {
        path.name: Image.open(path).convert('RGB')
        for folder in folders
        for path in folder.iterdir()
        if path.suffix in ('.png', '.jpg')
    }


@pytest.fixture(scope='module')
def samples():
    from sklearn.datasets import load_digits

    return load_digits()


def ink(root, split, coco, image, photo):
    """How far each pixel is from the photo, brightness and contrast fitted outside the boxes."""
    picture = np.asarray(Image.open(root / split / image['file_name']), dtype=float)
    x, y, w, h = image['crop']
    background = np.asarray(
        photo.crop((x, y, x + w, y + h)).resize((WIDTH, HEIGHT), Image.BICUBIC), dtype=float
    )
    if image['flipped']:
        background = background[:, ::-1]
    free = np.ones(picture.shape[:2], dtype=bool)
    for a in coco['annotations']:
        if a['image_id'] == image['id']:
            x, y, w, h = a['bbox']
            free[max(0, y - 1) : y + h + 1, max(0, x - 1) : x + w + 1] = False
    fit = free[..., None] & (picture > 5) & (picture < 250)
    gain, offset = np.polyfit(background[fit], picture[fit], 1)
    return np.abs(picture - (gain * background + offset).clip(0, 255)).max(-1), free


# What is in the pictures


def test_settings_and_classes_are_recorded(built):
    for split, count in (('train', 30), ('val', 16)):
        coco = annotations_of(built, split)
        assert coco['info']['settings']['seed'] == 1
        assert [c['name'] for c in coco['categories']] == list(DIGIT_CLASSES)
        assert [c['id'] for c in coco['categories']] == list(range(10))
        assert [i['id'] for i in coco['images']] == list(range(1, count + 1))
        licenses = {entry['id'] for entry in coco['licenses']}
        assert {i['license'] for i in coco['images']} <= licenses
        for i in coco['images']:
            assert (i['height'], i['width']) == (HEIGHT, WIDTH)
            assert Image.open(built / split / i['file_name']).size == (WIDTH, HEIGHT)


def test_no_photo_and_no_sample_is_in_both_splits(built, samples):
    train, val = (annotations_of(built, split) for split in ('train', 'val'))
    for field in ('photo', 'digit_index'):
        key = 'images' if field == 'photo' else 'annotations'
        used = [{entry[field] for entry in coco[key]} for coco in (train, val)]
        assert used[0] and used[1] and used[0].isdisjoint(used[1])
        pool = [
            set(coco['info']['photos'] if field == 'photo' else coco['info']['digits']['indices'])
            for coco in (train, val)
        ]
        assert used[0] <= pool[0] and used[1] <= pool[1] and pool[0].isdisjoint(pool[1])
    assert len(pool[0] | pool[1]) == len(samples.target) == 1797
    files = [{p['file'] for p in coco['info']['photos'].values()} for coco in (train, val)]
    assert files[0].isdisjoint(files[1])


def test_no_handwritten_form_is_cut_by_the_split(built, samples):
    # All writers copied the same digits, and a form starts with 0123456789 three times.
    start = annotations_of(built, 'val')['info']['digits']['indices'][0]
    assert samples.target[start : start + 30].tolist() == list(range(10)) * 3


@pytest.mark.parametrize('split', ['train', 'val'])
def test_pixels_come_from_the_recorded_photo(built, sources, split):
    coco = annotations_of(built, split)
    for image in coco['images']:
        file = Path(coco['info']['photos'][image['photo']]['file']).name
        distance, free = ink(built, split, coco, image, sources[file])
        assert distance[free].max() < 60 and distance[free].mean() < 6, image


@pytest.mark.parametrize('split', ['train', 'val'])
def test_boxes_are_tight_around_ink(built, sources, split):
    coco = annotations_of(built, split)
    photos = coco['info']['photos']
    for image in coco['images']:
        distance, _ = ink(
            built, split, coco, image, sources[Path(photos[image['photo']]['file']).name]
        )
        for a in coco['annotations']:
            if a['image_id'] == image['id']:
                x, y, w, h = a['bbox']
                box = distance[y : y + h, x : x + w]
                for edge in (box[:2], box[-2:], box[:, :2], box[:, -2:]):
                    assert edge.max() > 25, a


@pytest.mark.parametrize('split', ['train', 'val'])
def test_ink_is_the_recorded_sample(built, sources, samples, split):
    coco = annotations_of(built, split)
    images = {i['id']: i for i in coco['images']}
    correlations = []
    for a in coco['annotations']:
        x, y, w, h = a['bbox']
        assert samples.target[a['digit_index']] == a['category_id']
        if max(w, h) < 40:
            continue
        image = images[a['image_id']]
        file = Path(coco['info']['photos'][image['photo']]['file']).name
        distance, _ = ink(built, split, coco, image, sources[file])
        plain = Image.fromarray(samples.images[a['digit_index']].astype(np.float32))
        plain = np.pad(np.asarray(plain.resize((128, 128), Image.BILINEAR)), 1) > 6
        rows, columns = np.flatnonzero(plain.any(1)), np.flatnonzero(plain.any(0))
        plain = Image.fromarray(plain[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
        expected = np.asarray(plain.resize((w, h)), dtype=float)
        drawn = distance[y : y + h, x : x + w] > 30
        correlations.append(np.corrcoef(drawn.ravel(), expected.ravel())[0, 1])
    assert len(correlations) >= 15
    assert min(correlations) > 0.4 and np.median(correlations) > 0.75


def test_boxes_keep_to_size_image_and_each_other(built):
    sizes, counts = [], []
    for split in ('train', 'val'):
        coco = annotations_of(built, split)
        ids = [a['id'] for a in coco['annotations']]
        assert ids == list(range(1, len(ids) + 1))
        for image in coco['images']:
            own = [a for a in coco['annotations'] if a['image_id'] == image['id']]
            counts.append(len(own))
            for a in own:
                x, y, w, h = a['bbox']
                assert x >= 0 and y >= 0 and x + w <= WIDTH and y + h <= HEIGHT
                assert min(w, h) >= 1 and a['area'] == w * h and a['iscrowd'] == 0
                sizes.append(max(w, h))
            for a, b in combinations([a['bbox'] for a in own], 2):
                shared = np.prod(
                    [
                        max(0, min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i]))
                        for i in (0, 1)
                    ]
                )
                assert shared < 0.05 * min(a[2] * a[3], b[2] * b[3])
    assert min(sizes) >= 12 and max(sizes) <= 96  # two thirds of 144
    # Log-uniform: half of them below the geometric mean, with all ranges present.
    assert 0.3 < np.mean(np.array(sizes) < (12 * 96) ** 0.5) < 0.8
    assert min(sizes) < 18 and max(sizes) > 64
    assert min(counts) >= 1 and 4 <= max(counts) <= 6


def test_masks_are_the_ink_of_the_boxes(tmp_path):
    settings = dict(num_train=4, num_val=1, image_size=96, digit_size=(16, 48))
    root = build_digits_on_photos(tmp_path / 'masks', masks=True, **settings)
    plain = build_digits_on_photos(tmp_path / 'plain', **settings)
    shares = []
    for split, count in (('train', 4), ('val', 1)):
        coco = json.loads((root / f'annotations/instances_{split}.json').read_text())
        found = {}
        for image in coco['images']:
            name = image['file_name']
            # The pictures are those of a set without masks.
            assert (root / split / name).read_bytes() == (plain / split / name).read_bytes()
            with Image.open(root / 'masks' / split / name.replace('.jpg', '.png')) as mask:
                found[image['id']] = np.asarray(mask)
                assert mask.mode == 'P' and found[image['id']].shape == (96, 96)
        assert len(found) == count
        for one in coco['annotations']:
            x, y, w, h = one['bbox']
            labels = found[one['image_id']]
            ink = labels[y : y + h, x : x + w] == one['category_id'] + 1
            assert ink.mean() > 0.1
            shares.append(ink.mean())
            # Tight around what can be seen, but for what a later digit covers.
            assert ink.any(0).mean() > 0.8 and ink.any(1).mean() > 0.8
        for image_id, labels in found.items():
            inside = np.zeros(labels.shape, bool)
            for x, y, w, h in (a['bbox'] for a in coco['annotations'] if a['image_id'] == image_id):
                inside[y : y + h, x : x + w] = True
            assert not labels[~inside].any() and labels.max() <= 10
    assert np.mean(shares) < 0.8  # Not the boxes.
    # A complete set is kept, of the other kind refused, and replaced where that is asked for.
    assert build_digits_on_photos(root, masks=True, **settings) == root
    with pytest.raises(LocalLearningError, match='masks=True, not False'):
        build_digits_on_photos(root, **settings)
    with pytest.raises(LocalLearningError, match='masks=None, not True'):
        build_digits_on_photos(plain, masks=True, **settings)
    (root / 'masks/train/000002.png').unlink()
    with pytest.raises(LocalLearningError, match='masks/train/000002.png is missing'):
        build_digits_on_photos(root, masks=True, **settings)
    build_digits_on_photos(root, overwrite=True, **settings)
    assert not (root / 'masks').exists()


def test_digit_size_and_number_are_options(tmp_path):
    root = build_digits_on_photos(
        tmp_path / 'set',
        num_train=6,
        num_val=1,
        image_size=128,
        digits_per_image=(2, 2),
        digit_size=(20, 24),
    )
    coco = annotations_of(root, 'train')
    assert len(coco['annotations']) == 12
    assert {max(a['bbox'][2:]) for a in coco['annotations']} <= set(range(20, 25))


# What others read


def test_pycocotools_scores_the_ground_truth_perfectly(built, capsys):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(str(built / 'annotations' / 'instances_val.json'))
    found = truth.loadRes(
        [
            dict(image_id=a['image_id'], category_id=a['category_id'], bbox=a['bbox'], score=0.9)
            for a in truth.anns.values()
        ]
    )
    evaluation = COCOeval(truth, found, 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


def test_mmdet_reads_it_by_its_conventions(built):
    from mmdet.datasets import CocoDataset

    for split, count in (('train', 30), ('val', 16)):
        dataset = CocoDataset(
            data_root=str(built),
            ann_file=f'annotations/instances_{split}.json',
            data_prefix=dict(img=f'{split}/'),
            pipeline=[],
            metainfo=dict(classes=DIGIT_CLASSES),
        )
        coco = annotations_of(built, split)
        assert len(dataset) == count and dataset.metainfo['classes'] == DIGIT_CLASSES
        read = 0
        for i in range(count):
            data = dataset.get_data_info(i)
            assert Path(data['img_path']).is_file()
            expected = [a for a in coco['annotations'] if a['image_id'] == data['img_id']]
            for instance, a in zip(data['instances'], expected):
                x, y, w, h = a['bbox']
                assert instance['bbox'] == [x, y, x + w, y + h]
                assert DIGIT_CLASSES[instance['bbox_label']] == str(a['category_id'])
            read += len(data['instances'])
        assert read == len(coco['annotations'])


# The same again


def test_same_arguments_give_the_same_bytes(tmp_path):
    first = contents(build_digits_on_photos(tmp_path / 'a', **SMALL))
    assert len(first) == 7
    assert contents(build_digits_on_photos(tmp_path / 'b', **SMALL)) == first
    other = contents(build_digits_on_photos(tmp_path / 'c', seed=1, **SMALL))
    assert set(other) == set(first)
    assert not any(other[name] == first[name] for name in first)


def test_a_small_set_is_the_beginning_of_a_large_one(tmp_path):
    small = build_digits_on_photos(tmp_path / 'small', num_train=2, num_val=1, image_size=64)
    large = build_digits_on_photos(tmp_path / 'large', num_train=4, num_val=3, image_size=64)
    for name in ('train/000001.jpg', 'train/000002.jpg', 'val/000001.jpg'):
        assert (small / name).read_bytes() == (large / name).read_bytes()
    few, many = (annotations_of(root, 'train')['annotations'] for root in (small, large))
    assert few == many[: len(few)]


def test_second_call_returns_at_once(tmp_path, monkeypatch):
    root = build_digits_on_photos(tmp_path / 'set', **SMALL)
    monkeypatch.setattr(digits_on_photos, '_build_split', None)
    start = time.perf_counter()
    for overwrite in (False, True):
        assert build_digits_on_photos(tmp_path / 'set', overwrite=overwrite, **SMALL) == root
    assert time.perf_counter() - start < 1


# What is there already


def test_other_settings_are_refused_and_replaced_on_demand(tmp_path):
    root = build_digits_on_photos(tmp_path / 'set', **SMALL)
    before = contents(root)
    with pytest.raises(LocalLearningError, match=r'seed=0, not 7.*overwrite=True'):
        build_digits_on_photos(root, seed=7, **SMALL)
    assert contents(root) == before
    build_digits_on_photos(root, num_train=2, num_val=1, image_size=64, seed=7, overwrite=True)
    assert len(contents(root)) == 5
    assert annotations_of(root, 'val')['info']['settings']['seed'] == 7
    assert os.listdir(tmp_path) == ['set']


@pytest.mark.parametrize('damage', ['train/000002.jpg', 'annotations/instances_val.json'])
def test_damaged_set_is_refused_and_replaced_on_demand(tmp_path, damage):
    root = build_digits_on_photos(tmp_path / 'set', **SMALL)
    before = contents(root)
    (root / damage).unlink()
    with pytest.raises(LocalLearningError, match=f'{damage} is missing.*overwrite=True'):
        build_digits_on_photos(root, **SMALL)
    build_digits_on_photos(root, overwrite=True, **SMALL)
    assert contents(root) == before


@pytest.mark.parametrize('overwrite', [False, True])
def test_files_of_the_user_are_never_touched(tmp_path, overwrite):
    foreign = tmp_path / 'foreign'
    (foreign / 'train').mkdir(parents=True)
    (foreign / 'train' / '000001.jpg').write_text('mine')
    mixed = build_digits_on_photos(tmp_path / 'mixed', **SMALL)
    (mixed / 'notes.txt').write_text('mine')
    for root in (foreign, mixed):
        before = contents(root)
        with pytest.raises(LocalLearningError, match='no build wrote.*another out_dir'):
            build_digits_on_photos(root, seed=3, overwrite=overwrite, **SMALL)
        assert contents(root) == before


def test_empty_folder_is_filled(tmp_path):
    (tmp_path / 'set').mkdir()
    assert len(contents(build_digits_on_photos(tmp_path / 'set', **SMALL))) == 7


@pytest.mark.parametrize('former', [False, True])
@pytest.mark.parametrize('call', [2, 5])
def test_interrupted_build_leaves_things_as_they_were(tmp_path, monkeypatch, former, call):
    if former:
        build_digits_on_photos(tmp_path / 'set', seed=9, **SMALL)
    before = contents(tmp_path)
    background, during = digits_on_photos._background, []

    def interrupted(*args):
        # What a killed process would leave under the folder's name.
        during.append(contents(tmp_path / 'set'))
        if len(during) == call:
            raise KeyboardInterrupt
        return background(*args)

    with monkeypatch.context() as patch:
        patch.setattr(digits_on_photos, '_background', interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_digits_on_photos(tmp_path / 'set', overwrite=True, **SMALL)
    assert contents(tmp_path) == before
    assert len(during) == call
    assert all({f'set/{name}': data for name, data in seen.items()} == before for seen in during)
    assert os.listdir(tmp_path) == (['set'] if former else [])
    build_digits_on_photos(tmp_path / 'set', overwrite=True, **SMALL)


def test_failed_swap_brings_the_former_set_back(tmp_path, monkeypatch):
    root = build_digits_on_photos(tmp_path / 'set', seed=9, **SMALL)
    before = contents(tmp_path)
    rename = Path.rename

    def failing(self, target):
        if 'building' in self.name:
            raise OSError(5, 'Input/output error')
        return rename(self, target)

    monkeypatch.setattr(Path, 'rename', failing)
    with pytest.raises(LocalLearningError, match='Input/output error'):
        build_digits_on_photos(root, overwrite=True, **SMALL)
    assert contents(tmp_path) == before


def test_two_builds_at_once_end_in_one_set(tmp_path, monkeypatch):
    build_split, nested = digits_on_photos._build_split, []

    def meanwhile(*args):
        if not nested:
            nested.append(True)
            build_digits_on_photos(tmp_path / 'set', **SMALL)
        build_split(*args)

    monkeypatch.setattr(digits_on_photos, '_build_split', meanwhile)
    root = build_digits_on_photos(tmp_path / 'set', **SMALL)
    assert len(contents(root)) == 7 and os.listdir(tmp_path) == ['set']


# What a user gets wrong


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(num_train=0), 'num_train=0: give at least 1'),
        (dict(num_val=-1), 'num_val=-1: give at least 1'),
        (dict(num_train=2.5), 'num_train=2.5: give a whole number'),
        (dict(seed=-1), 'seed=-1: give at least 0'),
        (dict(image_size=16), 'image_size=16: give at least 48'),
        (dict(image_size=(192, 40)), 'image_size=40: give at least 48'),
        (dict(image_size=(64, 64, 3)), 'give two whole numbers'),
        (dict(image_size='large'), "image_size='large': give a whole number"),
        (dict(digits_per_image=(0, 3)), 'digits_per_image=0: give at least 1'),
        (dict(digits_per_image=(4, 2)), r'give \(2, 4\)'),
        (dict(digit_size=12), 'digit_size=12: give two whole numbers'),
        (dict(digit_size=(100, 128), image_size=96), 'give image_size=150 or more'),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(LocalLearningError, match=message) as caught:
        build_digits_on_photos(tmp_path / 'set', **arguments)
    assert '\n' not in str(caught.value)
    assert not os.listdir(tmp_path)


def test_out_dir_must_be_a_folder_that_can_be_written(tmp_path, monkeypatch):
    file = tmp_path / 'file'
    file.write_text('mine')
    with pytest.raises(LocalLearningError, match='is a file: give a folder'):
        build_digits_on_photos(file, **SMALL)
    with pytest.raises(LocalLearningError, match='cannot write.*you may write to'):
        build_digits_on_photos(file / 'set', **SMALL)

    # Not by chmod: it does not bind the root user, as whom tests may run.
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(Path, 'mkdir', refuse)
    with pytest.raises(LocalLearningError, match='Permission denied.*you may write to'):
        build_digits_on_photos(tmp_path / 'set', **SMALL)
    assert contents(tmp_path) == dict(file=b'mine')


def test_missing_photo_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, 'find_spec', lambda name: None)
    with pytest.raises(LocalLearningError, match='pip install .*scikit-'):
        build_digits_on_photos(tmp_path / 'set', **SMALL)
    assert not os.listdir(tmp_path)


# Around it


@pytest.mark.slow
def test_tool_builds_the_same_set_from_the_repository_root(tmp_path):
    result = subprocess.run(
        [
            sys.executable,
            str(TOOL.relative_to(ROOT)),
            str(tmp_path / 'tool'),
            '--train',
            '3',
            '--val',
            '2',
            '--size',
            '64x64',
            '--digits',
            '1',
            '6',
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == str(tmp_path / 'tool')
    boxes = len(annotations_of(tmp_path / 'tool', 'train')['annotations'])
    assert lines[1].startswith(f'train 3 images, {boxes} boxes (0: ')
    assert contents(tmp_path / 'tool') == contents(build_digits_on_photos(tmp_path / 'a', **SMALL))


def test_without_arguments_the_tool_builds_what_the_demo_trains_on(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['build_digits.py'])
    monkeypatch.setattr(sys, 'path', list(sys.path))
    args = vars(runpy.run_path(str(TOOL))['parse_args']())
    data = Config.fromfile(str(ROOT / 'configs/_base_/datasets/digits_detection.py'))
    assert args['out'] == data.data_root.rstrip('/')
    assert (
        dict(
            num_train=args['train'],
            num_val=args['val'],
            image_size=args['size'],
            digits_per_image=args['digits'],
        )
        == data.digits.to_dict()
    )


def test_tool_reports_user_errors_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['build_digits.py', str(tmp_path / 'set'), '--train', '0'])
    monkeypatch.setattr(sys, 'path', list(sys.path))
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(TOOL), run_name='__main__')
    assert caught.value.code == 1
    assert capsys.readouterr().err == 'error: num_train=0: give at least 1\n'


def test_tool_names_its_own_option(tmp_path, monkeypatch, capsys):
    build_digits_on_photos(tmp_path / 'set', **SMALL)
    monkeypatch.setattr(sys, 'argv', ['build_digits.py', str(tmp_path / 'set')])
    monkeypatch.setattr(sys, 'path', list(sys.path))
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(TOOL), run_name='__main__')
    assert caught.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith('another out_dir or --overwrite')


def test_import_is_light_and_needs_no_mmdet():
    # Loaded by path: what the rest of the package imports is not this module's doing.
    code = (
        'import importlib.util, sys, types\n'
        'sys.modules["fba_mm"] = package = types.ModuleType("fba_mm")\n'
        f'package.__path__ = [{str(ROOT / "fba_mm")!r}]\n'
        'import fba_mm.datasets\n'
        'print([m for m in ("sklearn", "skimage", "scipy", "rich", "torch", "mmengine", '
        '"mmdet") if m in sys.modules])'
    )
    assert subprocess.check_output([sys.executable, '-c', code], text=True).strip() == '[]'
