"""Depth estimation by mmseg: from files to a stock checkpoint, and files that are refused."""

import copy
import re

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from fba_mm.analysis.synthetic_batch import synthetic_batch
from fba_mm.analysis.training_step import TrainingStep
from fba_mm.config import load_config
from fba_mm.errors import LocalLearningError
from fba_mm.localize import localize
from fba_mm.preflight.building import build_model
from fba_mm.preflight.classes import check_classes
from fba_mm.preflight.data import check_data
from fba_mm.tasks import task_of, task_of_model

from ..test_benchmarks import benchmark
from ..test_tools.in_process import ROOT, run_tool

CONFIG = ROOT / 'configs/depth_estimation/nyu/resnet18_bp.py'


def save(root, split: str, name: str, depths: np.ndarray) -> None:
    """A depth map in millimetres, and an image that shows it."""
    image = np.stack([depths / 40, 255 - depths / 40, np.full(depths.shape, 90)], -1)
    for folder, picture, suffix in (
        ('images', image.astype(np.uint8), '.jpg'),
        ('annotations', depths.astype(np.uint16), '.png'),
    ):
        path = root / folder / split / f'{name}{suffix}'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('nyu')
    rows, columns = np.mgrid[:32, :64]
    for i in range(4):
        depths = 1000 + 6000 * rows / 32 * (1 + i) / 4
        depths[4:16, 8 * i : 8 * i + 20] = 1500
        save(root, 'train', f'kitchen_{i:04}', depths)
    save(root, 'test', 'kitchen_0000', depths[:, ::-1])
    return root


@pytest.fixture(scope='module')
def small(root) -> Config:
    """NYU's config, with a narrow network on small images."""
    cfg = load_config(str(CONFIG))
    cfg.model.data_preprocessor.size = (32, 32)
    cfg.model.backbone.update(base_channels=16, stem_channels=16, init_cfg=None)
    cfg.model.backbone.norm_cfg.type = 'BN'
    cfg.model.decode_head.update(
        in_channels=[16, 32, 64, 128], embed_dim=16, feature_dim=128, num_deconv_filters=(16, 16)
    )
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].update(num_workers=0, persistent_workers=False)
        cfg[f'{split}_dataloader'].dataset.data_root = str(root)
    cfg.train_dataloader.batch_size = 4
    pipeline = cfg.train_dataloader.dataset.pipeline
    # Colours, crops and mixing as they come: this is about whether it learns.
    cfg.train_dataloader.dataset.pipeline = [*pipeline[:2], pipeline[-1]]
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.crop_type = None
    for split in ('val', 'test'):
        cfg[f'{split}_dataloader'].dataset.pipeline[1].scale = (64, 32)
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=12, val_interval=12)
    cfg.param_scheduler = []
    cfg.optim_wrapper.optimizer.lr = 3e-3
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint.interval = 12
    cfg.log_processor.window_size = 1
    return cfg


@pytest.fixture
def cfg(small) -> Config:
    return copy.deepcopy(small)


def figures_in(result) -> str:
    return re.findall(r'(d1: .*silog: [\d.]+)', result.out + result.err)[-1]


@pytest.mark.slow
def test_training_export_and_stock_test(cfg, tmp_path, capfd):
    cfg.dump(tmp_path / 'depth.py')
    work_dir = tmp_path / 'local'
    arguments = [tmp_path / 'depth.py', '--local', 4, '--work-dir', work_dir]
    assert run_tool('train', *arguments, capsys=capfd).status == 0
    log = next(work_dir.glob('*/*.log')).read_text()
    for name in ('local_1.loss', 'local_2.loss', 'local_3.loss', ' loss'):
        losses = [float(value) for value in re.findall(rf'{name}: ([\d.]+)', log)]
        assert len(losses) == 12 and losses[-1] < 0.8 * losses[0]
    # The config that the training wrote has the LocalBackbone, the one from before hasn't.
    local = work_dir / 'depth.py', work_dir / 'iter_12.pth'
    assert run_tool('export', *local, tmp_path / 'stock.pth', capsys=capfd).status == 0
    tested = [
        run_tool('test', *files, '--work-dir', tmp_path / f'test{i}', capsys=capfd)
        for i, files in enumerate([local, (tmp_path / 'depth.py', tmp_path / 'stock.pth')])
    ]
    assert figures_in(tested[0]) == figures_in(tested[1])


def test_modules_are_isolated_and_exported_as_the_stock_model(cfg):
    """On a synthetic batch; so the default, light heads."""
    verdict = benchmark('tried_configs').try_config('resnet18_bp.py', cfg, 3, [64])
    assert (verdict.outcome, verdict.reason) == ('trains', '')


def test_the_models_own_head_teaches_all_modules(cfg):
    step = TrainingStep(localize(cfg, 3, auxiliary='shared'))
    log = step(synthetic_batch(step.model, (2, 3, 64, 64)))
    assert all(value.isfinite() for value in log.values())


def test_a_users_subclass_and_segmentors_are_told_apart(cfg):
    from mmseg.models import DepthEstimator
    from mmseg.registry import MODELS

    @MODELS.register_module(force=True)
    class OwnDepthEstimator(DepthEstimator):
        pass

    assert task_of_model(build_model(cfg)).name == 'depth'
    cfg.model.type = 'OwnDepthEstimator'
    assert task_of(cfg).name == 'depth'
    cfg.model.type = 'EncoderDecoder'
    assert task_of(cfg).name == 'segmentation'


def test_heads_that_do_not_tell_how_far_they_see(cfg):
    """There is no light head like them, and no depth is too far for them."""
    cfg.model.decode_head = dict(type='OwnHead')
    assert localize(cfg).model.backbone.auxiliary == dict(type='SLM')
    with pytest.raises(LocalLearningError, match='up to decode_head.max_depth, and OwnHead has no'):
        localize(cfg, auxiliary='light')
    cfg.train_dataloader.dataset.pipeline[1].depth_rescale_factor = 1.0
    check_data(cfg, 'train')
    cfg.model.decode_head.max_depth = 10
    assert localize(cfg).model.backbone.auxiliary.head.decode_head.max_depth == 10
    with pytest.raises(LocalLearningError, match='set depth_rescale_factor'):
        check_data(cfg, 'train')


def test_good_files_and_rooms_that_are_no_classes_of_pixels(cfg):
    check_data(cfg, 'train', 'val', 'test')
    check_classes(cfg, build_model(cfg), 'train', 'val', 'test')


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(depth_map_suffix='_x.png'), r'kitchen_0000_x.png does not exist.* \(3 more files'),
        (dict(img_suffix='.bmp'), 'holds no image'),
        (dict(data_prefix=dict(img_path='images/train')), 'has no depth maps'),
    ],
)
def test_folders_that_do_not_fit(change, words, cfg):
    for key, value in change.items():  # update() would go on inside of data_prefix.
        cfg.train_dataloader.dataset[key] = value
    with pytest.raises(LocalLearningError, match=f'train_dataloader.dataset.*{words}'):
        check_data(cfg, 'train')


@pytest.mark.parametrize(
    'make, words',
    [
        (lambda d: Image.fromarray(d).convert('RGB'), r'picture in colours \(RGB\)'),
        (lambda d: Image.fromarray(d[:, :50]), 'has 32x50 px, .*jpg 32x64'),
        (lambda d: b'none', 'cannot be read'),
        (lambda d: Image.fromarray(0 * d), 'no depth map tells any depth'),
        (lambda d: Image.fromarray(d // 1000 * 0 + 60000), r'100 % .*= 10000: set depth_rescale'),
    ],
)
def test_maps_that_cannot_be_learned_from(make, words, cfg, tmp_path):
    depths = np.full((32, 64), 2000, np.uint16)
    save(tmp_path, 'train', 'office_0000', depths)
    cfg.train_dataloader.dataset.data_root = str(tmp_path)
    check_data(cfg, 'train')
    path, made = tmp_path / 'annotations/train/office_0000.png', make(depths)
    path.write_bytes(made) if isinstance(made, bytes) else made.save(path)
    with pytest.raises(LocalLearningError, match=words) as error:
        check_data(cfg, 'train')
    assert '\n' not in str(error.value)
