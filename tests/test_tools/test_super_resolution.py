"""Super-resolution from built pairs to figures and pictures, through the tools."""

import re

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from PIL import Image

from fba_mm.analysis.activation_maps import shown_image
from fba_mm.analysis.trained_network import TrainedNetwork, validation_samples
from fba_mm.config import load_config
from fba_mm.datasets import build_photo_pairs

from ..conftest import needs
from .in_process import ROOT, run_tool
from .test_bad_input import assert_refused

pytestmark = needs('mmagic')

CONFIGS = {name: ROOT / f'configs/super_resolution/edsr_x2_{name}.py' for name in ('bp', 'fba')}


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pictures')
    for i, name in enumerate(('one', 'two')):
        noise = np.random.default_rng(i).integers(0, 256, (8, 6, 3), np.uint8)
        Image.fromarray(noise).resize((72, 96), Image.BICUBIC).save(folder / f'{name}.png')
    return build_photo_pairs(folder.parent / 'pairs', images=folder)


def options(pairs, method, scale=2):
    net = 'model.generator.' + ('backbone.' if method == 'fba' else '')
    return [
        f'{net}mid_channels=8',
        f'{net}num_blocks=4',
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=2',
        'train_dataloader.batch_size=2',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
        'val_dataloader.num_workers=0',
        'val_dataloader.persistent_workers=False',
        'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False',
        *(f'{split}_dataloader.dataset.data_root={pairs}' for split in ('train', 'val', 'test')),
        f'train_dataloader.dataset.data_prefix.img=LRbicx{scale}',
    ]


@pytest.fixture(scope='module')
def checkpoints(pairs, tmp_path_factory):
    """A checkpoint of each method, trained for two iterations."""
    found = {}
    for method, config in CONFIGS.items():
        work_dir = tmp_path_factory.mktemp(method)
        result = run_tool(
            'train', config, '--work-dir', work_dir, '--cfg-options', *options(pairs, method)
        )
        assert result.status == 0, result.err
        found[method] = work_dir / 'iter_2.pth'
    return found


def figures_in(result):
    values = re.findall(r'(photos\w*/\w+): ([\d.]+)', result.out + result.err)
    return {name: float(value) for name, value in values}


@pytest.mark.parametrize('method', CONFIGS)
def test_figures_on_luma_and_rgb(method, pairs, checkpoints, tmp_path, capfd):
    result = run_tool(
        'test',
        CONFIGS[method],
        checkpoints[method],
        '--work-dir',
        tmp_path,
        '--cfg-options',
        *options(pairs, method),
        capsys=capfd,
    )
    assert result.status == 0, result.err
    found = figures_in(result)
    assert set(found) == {f'photos{y}/{m}' for y in ('', '_Y') for m in ('PSNR', 'SSIM')}
    assert 0 < found['photos/PSNR'] < 60 and found['photos_Y/PSNR'] != found['photos/PSNR']


def test_the_picture(pairs, checkpoints, tmp_path, capfd):
    # The small networks as configs of their own.
    models = []
    for method, checkpoint in checkpoints.items():
        models += ['--model', method, next(checkpoint.parent.glob('*.py')), checkpoint]
    result = run_tool(
        'analysis_tools/draw_super_resolution',
        *models,
        '--crop',
        24,
        '--out',
        tmp_path / 'new/compare.png',
        capsys=capfd,
    )
    assert result.status == 0, result.err
    assert imread(tmp_path / 'new/compare.png').ndim == 3
    result = run_tool(
        'analysis_tools/draw_super_resolution',
        *models,
        '--images',
        'three',
        '--out',
        tmp_path / 'x.png',
        capsys=capfd,
    )
    assert_refused(result, '--images three', 'one, two')


def test_pairs_of_another_scale(pairs, tmp_path, capfd):
    result = run_tool(
        'train',
        CONFIGS['fba'],
        '--work-dir',
        tmp_path / 'work',
        '--cfg-options',
        *options(pairs, 'fba', scale=3),
        capsys=capfd,
    )
    assert_refused(result, 'LRbicx3/one.png has 32x24 px', 'enlarges 2 times', 'data_prefix.img')
    assert not (tmp_path / 'work').exists()


@pytest.mark.slow
def test_layers_on_validation_images(pairs, checkpoints):
    """A trained generator, layer by layer, as for CKA and activation maps."""
    cfg = load_config(str(CONFIGS['fba']))
    cfg.model.generator.backbone.update(mid_channels=8, num_blocks=4)
    cfg.val_dataloader.dataset.data_root = str(pairs)
    network = TrainedNetwork.load(cfg, str(checkpoints['fba']))
    samples = validation_samples(cfg, 9)
    images = network.preprocessed(samples)
    layers = dict(network.layers(images))
    with torch.no_grad():
        assert torch.equal(layers[network.layer_names[-1]], network.backbone(images))
    shown = shown_image(samples[0])
    assert shown.shape[2] == 3 and shown.shape[0] <= images.shape[2]
