"""Faulty pairs of images are refused by file, before training."""

from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from fba_mm import LocalLearningError
from fba_mm.preflight.data import check_data

from ..conftest import needs
from ..super_resolution import editor

pytestmark = needs('mmagic')


def save(path: Path, height: int, width: int, mode: str = 'RGB') -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).convert(mode).save(path)


@pytest.fixture
def root(tmp_path):
    for name in 'ab':
        save(tmp_path / f'high/{name}.png', 48, 60)
        save(tmp_path / f'low/{name}.png', 24, 30)
    return tmp_path


def training(root: Path, patch: int = 24, color_type: str = 'color', num_modules=3, **dataset):
    return Config(
        dict(
            default_scope='mmagic',
            model=editor(num_modules),
            train_dataloader=dict(
                dataset=dict(
                    dict(
                        type='BasicImageDataset',
                        data_root=str(root),
                        data_prefix=dict(img='low', gt='high'),
                        metainfo=dict(dataset_type='own', task_name='sisr'),
                        pipeline=[
                            dict(type='LoadImageFromFile', key='img', color_type=color_type),
                            dict(type='LoadImageFromFile', key='gt', color_type=color_type),
                            dict(type='PairedRandomCrop', gt_patch_size=patch),
                        ],
                    ),
                    **dataset,
                )
            ),
        )
    )


def refused(cfg, *words):
    with pytest.raises(LocalLearningError) as caught:
        check_data(cfg, 'train')
    message = str(caught.value)
    assert message.startswith('train_dataloader.dataset') and '\n' not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize('num_modules', [None, 3])
def test_good_pairs(root, num_modules):
    check_data(training(root, num_modules=num_modules), 'train')
    save(root / 'low/a.png', 24, 30, 'L')  # read in colour
    check_data(training(root), 'train')


def test_a_scale_that_is_not_the_networks(root):
    save(root / 'low/b.png', 16, 20)
    refused(
        training(root), 'low/b.png has 16x20 px', '48x60', 'enlarges 2 times', 'data_prefix.img'
    )
    save(root / 'low/b.png', 24, 20)
    refused(training(root), 'low/b.png has 24x20', 'enlarges 2 times')


def test_images_smaller_than_a_patch(root):
    refused(training(root, patch=50), 'high/a.png has 48x60 px', 'gt_patch_size=50')
    check_data(training(root, patch=48), 'train')


def test_patches_that_the_scale_does_not_divide(root):
    refused(training(root, patch=25), 'gt_patch_size=25', 'set it to 24')


def test_missing_partners(root):
    (root / 'high/b.png').unlink()
    refused(training(root), 'high/b.png does not exist', 'low/b.png')
    save(root / 'high/b.png', 48, 60)
    save(root / 'high/c.png', 48, 60)
    save(root / 'high/d.png', 48, 60)
    refused(training(root), 'high/c.png has no low-resolution partner, nor have 1 others')
    (root / 'pairs.txt').write_text('a.png (48,60,3)\n')
    check_data(training(root, ann_file='pairs.txt'), 'train')


def test_unreadable_and_no_images(root):
    (root / 'low/a.png').write_bytes((root / 'low/a.png').read_bytes()[:20])
    refused(training(root), 'low/a.png cannot be read')
    for name in 'ab':
        (root / f'low/{name}.png').unlink()
    refused(training(root), 'holds no image', 'build_photo_pairs.py')


def test_grey_files_that_stay_grey(root):
    save(root / 'low/b.png', 24, 30, 'L')
    refused(training(root, color_type='unchanged'), 'low/b.png is grey', "color_type='color'")
