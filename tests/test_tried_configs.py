"""The sweep over a collection finds what trains, what is refused, and what is broken."""

import copy
from unittest import mock

import pytest
from mmengine.config import Config

from fba_mm.config import load_config
from fba_mm.local.auxiliary.slm import SLM
from fba_mm.local.task_loss import map_losses

from .conftest import retinanet
from .test_benchmarks import benchmark

pytestmark = pytest.mark.slow

tried_configs = benchmark('tried_configs')
Verdict, try_config = tried_configs.Verdict, tried_configs.try_config
small, small_digest = tried_configs.small, tried_configs.small_digest


def config(**changes) -> Config:
    model = retinanet(num_modules=None)
    model.update(changes)
    return Config(
        dict(
            default_scope='mmdet',
            model=model,
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01)),
        )
    )


def verdict_on(cfg: Config) -> Verdict:
    return try_config('a/b.py', cfg, sizes=(64, 96))


def test_a_config_that_trains():
    cfg = config()
    before = copy.deepcopy(cfg.to_dict())
    verdict = verdict_on(cfg)
    assert verdict == Verdict('a/b.py', 'RetinaNet', 'ResNet', 'trains', ''), verdict
    assert cfg.to_dict() == before


def test_a_backbone_that_cannot_be_cut():
    stage = dict(num_modules=1, num_branches=1, block='BASIC', num_blocks=(1,), num_channels=(8,))
    branches = {
        f'stage{n}': dict(
            stage, num_branches=n, num_blocks=(1,) * n, num_channels=(8, 16, 32, 64)[:n]
        )
        for n in range(1, 5)
    }
    cfg = config(backbone=dict(type='mmdet.HRNet', extra=branches))
    cfg.model.neck.in_channels = [8, 16, 32, 64]
    verdict = verdict_on(cfg)
    assert (verdict.outcome, verdict.backbone) == ('refused', 'HRNet')
    assert verdict.reason.startswith('backbone HRNet cannot be cut')
    # What does not fit together without local learning either is no refusal of its own.
    cfg.model.neck.in_channels = [8, 16, 32, 65]
    assert verdict_on(cfg).outcome == 'not tried'


def test_modules_that_are_not_isolated():
    """An auxiliary network whose loss has to do with a later module's weights."""
    original = SLM.loss

    def loss(self, x, levels, step):
        losses = original(self, x, levels, step)
        later = step.source.backbone.layer4[1].conv2.weight.sum()
        return dict(losses, loss_more=later if self.cut_point.module == 1 else later.detach())

    with mock.patch.object(SLM, 'loss', loss):
        verdict = verdict_on(config())
    assert verdict.outcome == 'fails'
    assert verdict.reason == 'AssertionError: the loss of module 2 reaches other modules'


def test_losses_that_are_not_finite():
    original = SLM.loss

    def loss(self, *args):
        return map_losses(original(self, *args), lambda value: value * float('nan'))

    with mock.patch.object(SLM, 'loss', loss):
        verdict = verdict_on(config())
    assert verdict.outcome == 'fails' and 'the loss of module 1 is nan' in verdict.reason


def test_a_checkpoint_that_computes_something_else():
    original = tried_configs.export_checkpoint

    def export(*args):
        exported = original(*args)
        weights = exported['state_dict']
        weights['backbone.conv1.weight'] = weights['backbone.conv1.weight'] + 1
        return exported

    with mock.patch.object(tried_configs, 'export_checkpoint', export):
        verdict = verdict_on(config())
    assert verdict.outcome == 'fails' and 'something else' in verdict.reason


@pytest.mark.slow
def test_what_cannot_be_tried():
    """Faults of the stock config are none of local learning."""
    verdict = verdict_on(config(neck=dict(config().model.neck, in_channels=[1, 2, 3, 4])))
    assert verdict.outcome == 'not tried' and verdict.reason.startswith('without local learning')
    cfg = config()
    cfg.model = dict(type='SORT', detector=cfg.model)
    assert verdict_on(cfg).reason == 'its model has no backbone of its own'


def test_heads_that_ask_for_the_epoch():
    cfg = load_config('mmdet::tood/tood_r50_fpn_1x_coco.py')
    cfg.model.backbone.update(depth=18, base_channels=8, stem_channels=8)
    cfg.model.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
    cfg.model.bbox_head.update(
        in_channels=16,
        feat_channels=16,
        stacked_convs=1,
        num_classes=3,
        num_dcn=0,
        norm_cfg=dict(type='GN', num_groups=4, requires_grad=True),
    )
    verdict = verdict_on(cfg)
    assert verdict.outcome == 'trains', verdict


@pytest.mark.parametrize(
    'name',
    [
        'fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024',
        'pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512',
        'deeplabv3/deeplabv3_r50-d8_4xb4-40k_voc12aug-512x512',
        'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512',
    ],
)
def test_segmentors(name):
    cfg = load_config(f'mmseg::{name}.py')
    _narrow(cfg.model)
    verdict = try_config(name, cfg, sizes=(64,))
    assert verdict.outcome == 'trains' and verdict.model == 'EncoderDecoder', verdict


def test_detectors_that_read_text():
    """Their language model, which comes from a hub, is a small one; the config isn't changed."""
    cfg = load_config('mmdet::glip/glip_atss_swin-t_a_fpn_dyhead_16xb2_ms-2x_funtune_coco.py')
    cfg.model.backbone.update(embed_dims=12, num_heads=[1, 2, 3, 6])
    cfg.model.neck.in_channels = [24, 48, 96]
    before = copy.deepcopy(cfg._cfg_dict)
    verdict = try_config('glip', cfg, sizes=(64,))
    assert verdict.outcome == 'trains' and verdict.model == 'GLIP', verdict
    assert cfg._cfg_dict == before


def _narrow(part: dict) -> None:
    """Make a segmentor's config narrow."""
    if part.get('type') == 'ResNetV1c':
        part.update(base_channels=8, stem_channels=8)
    elif part.get('type') == 'SwinTransformer':
        part.update(embed_dims=12, num_heads=[1, 2, 3, 6])
    for key, value in part.items():
        if key == 'in_channels':
            part[key] = [one // 8 for one in value] if isinstance(value, list) else value // 8
        elif key in ('channels', 'num_classes'):
            part[key] = 8
        elif isinstance(value, dict):
            _narrow(value)


def test_small():
    cfg = config(
        backbone=dict(
            type='ResNet',
            depth=101,
            frozen_stages=1,
            norm_eval=True,
            norm_cfg=dict(type='SyncBN', requires_grad=False),
            init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet101'),
        )
    )
    cfg.model.data_preprocessor = dict(
        type='DetDataPreprocessor',
        batch_augments=[dict(type='BatchFixedSizePad', size=(1024, 1024))],
    )
    cfg.load_from, cfg.model.test_cfg.max_per_img = 'somewhere', 1000
    cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
    made = small(cfg)
    assert made.model.backbone == dict(
        type='ResNet',
        depth=50,
        frozen_stages=-1,
        norm_eval=False,
        norm_cfg=dict(type='BN', requires_grad=True),
        init_cfg=None,
    )
    assert made.model.data_preprocessor.batch_augments is None
    assert made.load_from is None and made.model.test_cfg.max_per_img == 32
    assert made.optim_wrapper == dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))


@pytest.mark.parametrize(
    'init, kept',
    [
        (dict(checkpoint='https://host/weights.pth'), None),
        ('torchvision://resnet18', None),
        (dict(type='Xavier', layer='Conv2d'), dict(type='Xavier', layer='Conv2d')),
    ],
)
def test_nothing_is_fetched(init, kept):
    cfg = small(config(backbone=dict(type='ResNet', init_cfg=init)))
    assert cfg.model.backbone.init_cfg == kept


def test_configs_that_differ_in_schedule_alone():
    cfg, longer, deeper = config(), config(), config()
    longer.merge_from_dict(
        {
            'train_cfg.max_epochs': 24,
            'optim_wrapper.optimizer.lr': 0.1,
            'model.backbone.frozen_stages': 1,
        }
    )
    cfg.model.backbone.frozen_stages = -1
    deeper.model.backbone.depth = 34
    assert small_digest(cfg) == small_digest(longer) != small_digest(deeper)


def test_collection():
    found = tried_configs.collection()
    assert 'retinanet/retinanet_r50_fpn_1x_coco.py' in found
    assert not any('_base_' in name for name in found) and len(found) > 500


def test_sample():
    configs = {name: name for name in ('a/r1', 'a/r2', 'a/s1', 'b/r1', 'b/r2', 'b/r3')}
    picked = [
        name for name, _ in tried_configs.sample(configs, lambda path: path.split('/')[1][0], 1)
    ]
    assert picked == ['a/r1', 'a/s1', 'b/r1']
    assert len(list(tried_configs.sample(configs, lambda path: path.split('/')[1][0], 2))) == 5


def test_table():
    table = tried_configs.compatibility_table(
        [
            Verdict('a.py', 'M', 'ResNet'),
            Verdict('b.py', 'M', 'ResNet', 'refused', 'too | bad'),
            Verdict('c.py', 'M', 'HRNet', 'refused', 'too | bad'),
            Verdict('d.py', outcome='not tried'),
        ]
    )
    lines = table.splitlines()
    assert lines[2] == '| ResNet | 2 | 1 | 1 | 0 | 0 |'
    assert '| **all** | 4 | 1 | 2 | 0 | 1 |' in lines
    assert '| refused | too / bad | `b.py`, `c.py` |' in lines


@pytest.mark.parametrize('sizes, outcome', [((32, 64), 'trains'), ((32,), 'not tried')])
def test_larger_images_where_a_model_needs_them(sizes, outcome):
    original = tried_configs.synthetic_batch

    def batch_of(model, shape):
        if shape[2] < 64:
            raise RuntimeError('too small')
        return original(model, shape)

    with mock.patch.object(tried_configs, 'synthetic_batch', batch_of):
        assert try_config('a.py', config(), sizes=sizes).outcome == outcome
