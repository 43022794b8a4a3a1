"""Segmentation from built masks to mIoU, pictures and a stock checkpoint, through the tools."""

import re

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from PIL import Image

from fba_mm.analysis.activation_maps import activation_maps
from fba_mm.analysis.trained_network import TrainedNetwork, validation_samples
from fba_mm.command_line import apply_cfg_options
from fba_mm.config import load_config
from fba_mm.datasets import build_digits_on_photos

from .in_process import ROOT, run_tool
from .test_bad_input import assert_refused

CONFIGS = {name: ROOT / f'configs/segmentation/digits/fcn_r18_{name}.py' for name in ('bp', 'fba')}


@pytest.fixture(scope='module')
def masks(tmp_path_factory):
    return build_digits_on_photos(
        tmp_path_factory.mktemp('digits') / 'masks',
        num_train=6,
        num_val=3,
        image_size=64,
        digit_size=(24, 40),
        masks=True,
    )


def options(masks, **more):
    found = {'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1, **more}
    for split in ('train', 'val', 'test'):
        found[f'{split}_dataloader.dataset.data_root'] = masks
        found.update(
            {
                f'{split}_dataloader.{key}': value
                for key, value in dict(
                    num_workers=0, persistent_workers=False, batch_size=3
                ).items()
            }
        )
    return ['--cfg-options', *(f'{key}={value}' for key, value in found.items())]


@pytest.fixture(scope='module')
def trained(masks, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('trained')
    assert run_tool('train', CONFIGS['fba'], '--work-dir', work_dir, *options(masks)).status == 0
    return work_dir / 'epoch_1.pth'


def miou_in(result) -> float:
    return float(re.findall(r'mIoU: ([\d.]+)', result.out + result.err)[-1])


@pytest.mark.slow
def test_figures_pictures_and_export(masks, trained, tmp_path, capfd):
    result = run_tool(
        'test',
        CONFIGS['fba'],
        trained,
        '--work-dir',
        tmp_path / 'local',
        '--show-dir',
        tmp_path / 'pictures',
        *options(masks),
        capsys=capfd,
    )
    assert result.status == 0, result.err
    pictures = list((tmp_path / 'pictures').rglob('*.png'))
    assert len(pictures) == 3
    # The truth beside the prediction.
    assert {imread(path).shape[:2] for path in pictures} == {(64, 128)}
    exported = tmp_path / 'stock.pth'
    assert run_tool('export', CONFIGS['fba'], trained, exported, capsys=capfd).status == 0
    stock = run_tool(
        'test',
        CONFIGS['bp'],
        exported,
        '--work-dir',
        tmp_path / 'stock',
        *options(masks),
        capsys=capfd,
    )
    assert stock.status == 0, stock.err
    assert miou_in(stock) == miou_in(result) > 0


@pytest.mark.slow
def test_pictures_without_a_visualizer(masks, trained, tmp_path, capfd):
    config = tmp_path / 'config.py'
    config.write_text(f'_base_ = {str(CONFIGS["fba"])!r}\nvisualizer = None\n')
    result = run_tool(
        'test',
        config,
        trained,
        '--show-dir',
        tmp_path / 'pictures',
        '--work-dir',
        tmp_path / 'work',
        *options(masks),
        capsys=capfd,
    )
    assert_refused(result, '--show-dir', 'SegLocalVisualizer')


def test_a_config_of_back_propagation_in_modules(masks, tmp_path, capfd):
    result = run_tool(
        'train',
        CONFIGS['bp'],
        '--local',
        3,
        '--auxiliary',
        'light',
        '--work-dir',
        tmp_path,
        *options(masks, **{'train_cfg.max_epochs': 1}),
        capsys=capfd,
    )
    assert result.status == 0, result.err
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'Local learning in 3 modules' in log and 'mIoU' in log


@pytest.mark.slow
@pytest.mark.parametrize(
    'key, value, words',
    [
        ('model.decode_head.num_classes', 7, ['11 classes', 'model.decode_head.num_classes=7']),
        ('train_dataloader.dataset.seg_map_suffix', '_x.png', ['000001_x.png does not exist']),
        (
            'train_dataloader.dataset.data_prefix.seg_map_path',
            'nowhere',
            ['nowhere does not exist'],
        ),
    ],
)
def test_faulty_configs(masks, tmp_path, capfd, key, value, words):
    result = run_tool(
        'train',
        CONFIGS['fba'],
        '--work-dir',
        tmp_path / 'work',
        *options(masks, **{key: value}),
        capsys=capfd,
    )
    assert_refused(result, *words)
    assert not (tmp_path / 'work').exists()


def test_a_faulty_mask(masks, tmp_path, capfd):
    path = masks / 'masks/val/000002.png'
    good = path.read_bytes()
    try:
        Image.fromarray(np.full((64, 64), 11, np.uint8)).save(path)
        result = run_tool(
            'train', CONFIGS['fba'], '--work-dir', tmp_path / 'work', *options(masks), capsys=capfd
        )
    finally:
        path.write_bytes(good)
    assert_refused(result, 'val_dataloader.dataset: ', 'masks/val/000002.png has label 11')
    assert not (tmp_path / 'work').exists()


@pytest.mark.slow
def test_layers_on_validation_images(masks, trained):
    """A trained segmentor's backbone, layer by layer, as for CKA and activation maps."""
    cfg = load_config(str(CONFIGS['fba']))
    apply_cfg_options(cfg, {'val_dataloader.dataset.data_root': str(masks)})
    network = TrainedNetwork.load(cfg, str(trained))
    samples = validation_samples(cfg, 9)
    assert len(samples) == 3
    images = network.preprocessed(samples)
    layers = dict(network.layers(images))
    with torch.no_grad():
        levels = network.backbone(images)
    assert torch.equal(layers[network.layer_names[-1]], levels[-1])
    assert len(activation_maps(network, samples, network.module_ends())) == 4
