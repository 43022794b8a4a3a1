"""Faulty masks are refused by file, before training, and so are heads for other classes."""

from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from fba_mm import LocalLearningError
from fba_mm.preflight.building import build_model
from fba_mm.preflight.classes import check_classes
from fba_mm.preflight.data import check_data

from ..conftest import needs
from ..segmentation import NUM_CLASSES, segmentor

pytestmark = needs('mmseg')

CLASSES = tuple('abcd')
LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]


def save_mask(path: Path, labels=(0, 1, 2, 3, 255), size=(8, 10), mode: str = 'L') -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.resize(np.array(labels, np.uint8), size)
    picture = Image.fromarray(mask)
    if mode == 'P':
        picture.putpalette([0, 0, 0] * 256)  # Colours say nothing.
    (picture if mode in 'LP' else picture.convert(mode)).save(path)


@pytest.fixture
def root(tmp_path):
    (tmp_path / 'img').mkdir()
    for name in 'xy':
        Image.new('RGB', (10, 8)).save(tmp_path / f'img/{name}.jpg')
        save_mask(tmp_path / f'mask/{name}.png')
    return tmp_path


def training(root: Path, **dataset) -> Config:
    settings = dict(
        type='BaseSegDataset',
        data_root=str(root),
        metainfo=dict(classes=CLASSES),
        data_prefix=dict(img_path='img', seg_map_path='mask'),
        pipeline=LOAD,
    )
    return Config(
        dict(
            default_scope='mmseg',
            model=segmentor(3),
            train_dataloader=dict(dataset=dict(settings, **dataset)),
        )
    )


def refused(cfg: Config, *words: str) -> None:
    with pytest.raises(LocalLearningError) as caught:
        check_data(cfg, 'train')
    message = str(caught.value)
    assert message.startswith('train_dataloader.dataset') and '\n' not in message
    for word in words:
        assert word in message, message


def test_good_masks(root):
    save_mask(root / 'mask/x.png', mode='P')
    check_data(training(root), 'train')
    check_data(training(root, ignore_index=7), 'train')
    cfg = training(root)
    inner = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[inner, inner])
    check_data(cfg, 'train')


@pytest.mark.parametrize('orientation, turned', [(1, False), (3, False), (6, True), (8, True)])
def test_pictures_of_a_camera_held_upright(orientation, turned, root):
    """They are read as they are to be looked at, not as they are stored."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new('RGB', (10, 8)).save(root / 'img/x.jpg', exif=exif)
    stored = [dict(LOAD[0], color_type='color_ignore_orientation'), *LOAD[1:]]
    pipelines = (LOAD, stored) if turned else (LOAD,)
    for pipeline in pipelines:
        as_seen = turned and pipeline is LOAD
        save_mask(root / 'mask/x.png', size=(10, 8) if as_seen else (8, 10))
        check_data(training(root, pipeline=pipeline), 'train')
        save_mask(root / 'mask/x.png', size=(8, 10) if as_seen else (10, 8))
        refused(training(root, pipeline=pipeline), 'mask/x.png has', 'of one size')


def test_no_folder_of_masks(root):
    refused(training(root, data_prefix=dict(img_path='img')), 'set data_prefix.seg_map_path')


def test_labels_beyond_the_classes(root):
    save_mask(root / 'mask/y.png', (0, 1, 9), mode='P')
    refused(training(root), 'mask/y.png has label 9', 'classes are 0 to 3', 'metainfo')
    save_mask(root / 'mask/x.png', (0, 6))
    refused(training(root), 'mask/x.png has label 6', '(1 more files have faults)')
    check_data(
        training(
            root, ignore_index=9, data_prefix=dict(img_path='img', seg_map_path='mask'), ann_file=''
        ),
        'val',
    )
    # A val_dataloader that reads no masks has none to be faulty.
    check_data(training(root, pipeline=[LOAD[0], LOAD[2]]), 'train')


@pytest.mark.parametrize('labels', [(0, 255), (255,), (3, 255)])
def test_masks_of_black_and_white(labels, root, monkeypatch):
    """The foreground would be skipped, and a network that says 0 everywhere be perfect."""
    for name in 'xy':
        save_mask(root / f'mask/{name}.png', labels)
    only = 'no label' if len(labels) == 1 else f'label {labels[0]} alone'
    words = (
        f'apart from 255, which training passes over, all masks together have {only}: ',
        'mask/x.png',
        'number the 4 classes from 0 in the masks',
    )
    refused(training(root), *words)
    # One of several processes looks further before it says so.
    monkeypatch.setattr('fba_mm.datasets.label_maps.get_world_size', lambda: 2)
    refused(training(root), *words)
    save_mask(root / 'mask/y.png', (1, 2))
    check_data(training(root), 'train')


def test_masks_of_one_class(root):
    for name in 'xy':
        save_mask(root / f'mask/{name}.png', (0,))
    check_data(training(root), 'train')
    save_mask(root / 'mask/x.png', (0, 255))
    check_data(training(root, metainfo=dict(classes=('a',))), 'train')
    # With reduce_zero_label, 0 is skipped, too.
    save_mask(root / 'mask/y.png', (0, 1))
    refused(training(root, reduce_zero_label=True), 'apart from 0, 255, ', 'have label 1 alone')


def test_a_data_set_without_classes(root):
    refused(
        training(root, metainfo=None),
        'BaseSegDataset has no classes of its own: name those '
        'of the data as metainfo=dict(classes=(...)',
    )


def test_an_ignored_label_of_the_data_sets_own(root):
    save_mask(root / 'mask/y.png', (0, 1, 9))
    check_data(training(root, ignore_index=9), 'train')


def test_labels_from_one(root):
    save_mask(root / 'mask/x.png', (0, 1, 2, 3, 4))
    refused(training(root), 'has label 4', 'set reduce_zero_label=True')
    check_data(training(root, reduce_zero_label=True), 'train')
    save_mask(root / 'mask/x.png', (0, 1, 2, 3, 5))
    refused(training(root, reduce_zero_label=True), 'has label 5', 'classes are 0 to 4')


def test_files_that_are_missing(root):
    (root / 'mask/y.png').unlink()
    refused(training(root), 'mask/y.png does not exist, the mask of', 'img/y.jpg', 'seg_map_suffix')
    refused(
        training(root, seg_map_suffix='_gtFine_labelTrainIds.png'),
        'mask/x_gtFine_labelTrainIds.png does not exist',
        'cityscapes.py',
        '1 more',
    )
    (root / 'list.txt').write_text('x\nz\n')
    refused(training(root, ann_file='list.txt'), 'img/z.jpg does not exist', 'ann_file')
    refused(training(root, img_suffix='.tif'), 'holds no image', '.tif')


def test_files_of_another_kind(root):
    save_mask(root / 'mask/y.png', mode='RGB')
    refused(training(root), 'mask/y.png is a picture in colours (RGB)')
    save_mask(root / 'mask/y.png', size=(10, 8))
    refused(training(root), 'mask/y.png has 10x8 px', '8x10')
    (root / 'mask/y.png').write_bytes(b'none')
    refused(training(root), 'mask/y.png cannot be read', 'copy them again')
    # Formats that only the config's own pipeline can read.
    for name in 'xy':
        (root / f'mask/{name}.npy').write_bytes(b'none')
        (root / f'img/{name}.npy').write_bytes(b'none')
        save_mask(root / f'mask/{name}.png')
    check_data(training(root, seg_map_suffix='.npy'), 'train')
    check_data(training(root, img_suffix='.npy'), 'train')
    save_mask(root / 'mask/x.png', (0, 6))
    refused(training(root, img_suffix='.npy'), 'mask/x.png has label 6')


@pytest.mark.parametrize(
    'change, words',
    [
        (
            dict(decode_head=dict(num_classes=7)),
            ['model.decode_head.num_classes=7', 'set that to 4'],
        ),
        (dict(auxiliary_head=dict(num_classes=3)), ['model.auxiliary_head.num_classes=3']),
        (dict(auxiliary_head=dict(num_classes=2, out_channels=1)), None),
        (dict(), None),
    ],
)
def test_heads_for_other_classes(root, change, words):
    cfg = training(root)
    assert len(CLASSES) == NUM_CLASSES
    cfg.merge_from_dict(dict(model=change))
    model = build_model(cfg)
    if words is None:
        check_classes(cfg, model, 'train')
        return
    with pytest.raises(LocalLearningError) as caught:
        check_classes(cfg, model, 'train', 'val')
    for word in ('its metainfo names 4 classes', *words):
        assert word in str(caught.value)
