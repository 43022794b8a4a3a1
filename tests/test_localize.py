"""Stock configs to local-learning ones and back."""

import copy
from pathlib import Path
from unittest import mock

import pytest
import torch
from mmdet.models.backbones import ResNet
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.structures import DataSample, MultiTaskDataSample

from fba_mm import LocalBackbone, LocalLearningError, LocalOptimWrapper, localize
from fba_mm.config import load_config, type_name
from fba_mm.engine.fba_hook import check_local_training
from fba_mm.localize import checkpointed, sliced, stock_form
from fba_mm.preflight.building import build_model

from .conftest import NUM_CLASSES, build, retinanet
from .local_training import Trainer
from .test_analysis.small_configs import classifier

CONFIGS = Path(__file__).parents[1] / 'configs'
RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
LIGHT = dict(type='SLM', head=dict(type='LightRetinaNet', num_classes=80))


def small_config(**settings) -> Config:
    """A config in a few lines."""
    model = retinanet(num_modules=None)
    settings = dict(
        dict(
            optim_wrapper=dict(
                type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, weight_decay=1e-4)
            )
        ),
        **settings,
    )
    return Config(dict(model=model, default_scope='mmdet', **settings))


def test_a_stock_name():
    stock = load_config(RETINANET)
    cfg = localize(RETINANET, num_modules='blocks', scope='all', apply='eager')
    assert cfg.model.backbone == dict(
        type='LocalBackbone', backbone=stock.model.backbone, num_modules='blocks', auxiliary=LIGHT
    )
    assert cfg.custom_hooks == [dict(type='FBAHook', scope='all')]
    assert cfg.optim_wrapper == dict(stock.optim_wrapper, type='LocalOptimWrapper', apply='eager')
    assert cfg.custom_imports == dict(imports=['fba_mm'], allow_failed_imports=False)
    assert cfg.model_wrapper_cfg == dict(type='LocalDataParallel')
    changed = {'model', 'custom_hooks', 'optim_wrapper', 'custom_imports', 'model_wrapper_cfg'}
    assert {key for key in cfg if cfg.get(key) != stock.get(key)} == changed
    head = stock.model.bbox_head
    head.loss_cls = dict(head.loss_cls, type='InSlices', of='FocalLoss')
    assert {k: v for k, v in cfg.model.items() if k != 'backbone'} == {
        k: v for k, v in stock.model.items() if k != 'backbone'
    }
    # What a runner writes beside its checkpoints can be read again.
    assert Config.fromstring(cfg.pretty_text, '.py').to_dict() == cfg.to_dict()

    cfg.model.backbone.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = build(cfg.model)
    assert isinstance(model.backbone, LocalBackbone)
    # 17, of which stem and first stage are frozen and join the first block behind them.
    assert model.backbone.num_modules == 13


@pytest.mark.parametrize(
    'name, classes',
    [
        (RETINANET, 80),
        ('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', 80),
        ('mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py', 20),
    ],
)
def test_light_auxiliary_networks(name, classes):
    cfg = localize(name, auxiliary='light')
    head = cfg.model.backbone.auxiliary.head
    assert head.num_classes == classes and head.type == 'LightRetinaNet'
    cfg.model.backbone.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = build(cfg.model)
    for auxiliary in model.backbone.auxiliary:
        auxiliary.check(model, model.backbone)


def light_heads(backbone, channels):
    """The own heads of a detector whose modules learn from light ones."""
    cfg = small_config()
    cfg.model.backbone = backbone
    cfg.model.neck.in_channels = channels
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = build(localize(cfg, auxiliary='light').model)
    return [auxiliary.head for auxiliary in model.backbone.auxiliary]


@pytest.mark.parametrize(
    'indices, start_level',
    [
        ((1, 2, 4, 6), 1),  # strides 4, 8, 16 and 32
        ((0, 1, 2, 4), 2),  # 2, 4, 8 and 16
        ((2, 4, 6), 0),
    ],
)
def test_a_light_head_starts_at_stride_8(indices, start_level):
    """Wherever that is among the backbone's maps: anchors lie on the positions of the maps."""
    widths = dict(zip(range(8), (8, 8, 8, 8, 16, 24, 40, 1280)))
    backbone = dict(type='mmdet.MobileNetV2', widen_factor=0.125, out_indices=indices)
    for head in light_heads(backbone, [widths[i] for i in indices]):
        assert head.neck.start_level == start_level
        assert head.backbone.strides[start_level] == 8


# Strides of the backbone's maps, those of the light head's, and its smallest anchors, in strides.
@pytest.mark.parametrize(
    'own, strides, scales',
    [
        ((4, 8, 16, 32), (8, 16, 32, 64, 128), (4,)),  # RetinaNet, FCOS, and RPN's 4 to 64
        ((8, 16, 32), (8, 16, 32, 64, 128), (4,)),  # YOLOX, RTMDet
        ((8, 16), (8, 16, 32, 64, 128), (4,)),  # SSD
        ((16,), (16, 32, 64, 128), (2, 4)),  # two-stage detectors on one map, ViTDet
        ((32,), (32, 64, 128), (1, 2, 4)),  # DETR, YOLOF
        ((4, 8, 8, 8), (8, 8, 8, 16, 32, 64, 128), (4,)),  # dilated stages
    ],
)
def test_a_light_head_for_whatever_maps_there_are(own, strides, scales):
    """Anchors lie on the positions of the maps, and start at 32 pixels."""
    with DefaultScope.overwrite_default_scope('mmengine'):
        head = build(
            dict(
                LIGHT['head'],
                backbone=dict(type='FeatureStub', channels=[8] * len(own), strides=own),
            )
        )
    anchors = head.bbox_head.prior_generator
    assert tuple(stride for stride, _ in anchors.strides) == strides
    assert tuple(anchors.scales.tolist()) == scales
    start = head.neck.start_level
    assert own[start:] == strides[: len(own) - start]


@pytest.mark.parametrize(
    'name, start_level',
    [
        ('mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', 1),
        ('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', 1),
        ('mmdet::detr/detr_r50_8xb2-150e_coco.py', 0),
    ],
)
def test_light_heads_of_detectors_of_other_kinds(name, start_level):
    cfg = localize(name)
    assert cfg.model.backbone.auxiliary == LIGHT
    cfg.model.backbone.backbone.update(init_cfg=None, depth=18, base_channels=8)
    backbone = build(cfg.model.backbone)
    assert {auxiliary.head.neck.start_level for auxiliary in backbone.auxiliary} == {start_level}
    for auxiliary in backbone.auxiliary:
        # As wide as the head: deeper stages have blocks of 64 channels.
        made = auxiliary.level_channels[-1:] if auxiliary.blocks else [64]
        assert made == [64]


def test_the_neck_before_an_rpn_is_recomputed():
    """It starts at stride 4: what it keeps is more than what any module does."""
    name = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
    stock, cfg = load_config(name), localize(name)
    assert cfg.model.neck == dict(stock.model.neck, type='Recomputed', of='FPN')
    assert cfg.model.backbone.reserve == 0.5
    assert stock_form(cfg).model == stock.model
    for other in (localize(name, auxiliary='pooled'), localize(name, slices=False)):
        assert other.model.neck == stock.model.neck
    assert localize(RETINANET).model.neck == load_config(RETINANET).model.neck


@pytest.mark.parametrize('width, channels', [(256, None), (128, None), (64, 32), (6, 3)])
def test_a_light_head_is_narrower_than_the_models_own_neck(width, channels):
    cfg = load_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    cfg.model.neck.out_channels = width
    head = localize(cfg, auxiliary='light').model.backbone.auxiliary.head
    assert head.get('channels') == channels
    # A list of necks ends with the one that the head reads.
    cfg.model.neck = [dict(type='FPN', out_channels=256), cfg.model.neck]
    assert localize(cfg, auxiliary='light').model.backbone.auxiliary.head == head


def test_strides_that_no_light_head_fits():
    head = dict(
        LIGHT['head'],
        strides=(8, 16, 32),
        backbone=dict(type='FeatureStub', channels=[8, 8], strides=[16, 32]),
    )
    with pytest.raises(LocalLearningError, match=r'has those of \(16, 32\)'):
        build(head)


def test_what_no_light_head_is_for():
    classifier = Config(
        dict(
            model=dict(
                type='ImageClassifier', backbone=dict(type='ResNet'), head=dict(num_classes=10)
            )
        )
    )
    with pytest.raises(LocalLearningError, match='ImageClassifier is none .*: give .shared.'):
        localize(classifier, auxiliary='light')
    values = "give 'shared', 'pooled', 'own', 'light', the name of a method"
    with pytest.raises(LocalLearningError, match=f"auxiliary='cheap': {values}"):
        localize(small_config(), auxiliary='cheap')


@pytest.mark.parametrize(
    'name, auxiliary',
    [
        (RETINANET, LIGHT),
        ('mmdet::solo/solo_r50_fpn_1x_coco.py', LIGHT),
        ('mmdet::htc/htc_r50_fpn_1x_coco.py', LIGHT),  # whose semantic maps have 183 classes
        ('mmdet::rpn/rpn_r50_fpn_1x_coco.py', dict(type='SLM', blocks_per_stage=0)),
        (
            'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
            dict(type='SLM', blocks_per_stage=0),
        ),
        (
            'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py',
            dict(
                type='SLM',
                head=dict(
                    type='LightFCN',
                    channels=128,
                    num_classes=19,
                    align_corners=False,
                    loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
                ),
            ),
        ),
        ('mmseg::knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512.py', dict(type='SLM')),
    ],
)
def test_default_auxiliary_networks(name, auxiliary):
    assert localize(name).model.backbone.auxiliary == auxiliary
    assert localize(name, auxiliary='pooled').model.backbone.auxiliary == dict(
        type='SLM', blocks_per_stage=0
    )
    assert localize(name, auxiliary='shared').model.backbone.auxiliary == dict(type='SLM')


def test_single_stage_detectors_without_a_neck_have_heads_of_their_own():
    demo = CONFIGS / 'demo'
    stock = load_config(str(demo / 'yolov1_r34_digits.py'))
    local = localize(stock).model.backbone
    assert local == load_config(str(demo / 'yolov1_r34_fba_digits.py')).model.backbone
    assert local.auxiliary.head.bbox_head == stock.model.bbox_head
    assert (
        localize(stock).optim_wrapper
        == load_config(str(demo / 'yolov1_r34_fba_digits.py')).optim_wrapper
    )
    two_stage = 'mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py'
    assert localize(two_stage).model.backbone.auxiliary == LIGHT


def test_tokens_are_not_pooled_by_default():
    cfg = load_config('mmdet::rpn/rpn_r50_fpn_1x_coco.py')
    cfg.model.backbone = dict(type='mmpretrain.VisionTransformer')
    assert localize(cfg).model.backbone.auxiliary == dict(type='SLM')


def test_a_generator_has_no_head_to_copy_or_to_pool_for():
    cfg = Config(dict(model=dict(type='BaseEditModel', generator=dict(type='EDSRNet'))))
    for auxiliary in ('own', 'pooled'):
        with pytest.raises(LocalLearningError, match=f"auxiliary='{auxiliary}' is for .*'light'"):
            localize(cfg, auxiliary=auxiliary)


@pytest.mark.parametrize(
    'name', ['Greedy', 'PredSim', 'DGL', 'InfoPro', 'AugLocal', 'MAN', 'MAN++']
)
def test_methods_by_name_learn_the_classes_of_the_models_head(name):
    stock = load_config(str(CONFIGS / 'classification/digits/resnet32_bp.py'))
    stock.model.head.num_classes = 7
    cfg = localize(stock, 3, auxiliary=name)
    assert cfg.model.backbone.auxiliary == dict(type=name, num_classes=7)
    check_local_training(build_model(cfg), LocalOptimWrapper)


@pytest.mark.parametrize('name', ['DGLFPN', 'StageTail'])
def test_methods_by_name_have_light_heads_in_a_detector(name):
    cfg = localize(small_config(), auxiliary=name)
    head = dict(type='LightRetinaNet', num_classes=NUM_CLASSES, channels=8)
    assert cfg.model.backbone.auxiliary == dict(type=name, head=head)
    check_local_training(build(cfg.model), LocalOptimWrapper)


def test_a_method_of_another_task_is_refused():
    cfg = localize(small_config(), auxiliary='DGL')
    with pytest.raises(LocalLearningError, match='DGL serves image classification'):
        check_local_training(build(cfg.model), LocalOptimWrapper)


def test_heads_of_classifiers():
    """They are copies by default: from a head that all share, modules learn far less."""
    stock = load_config('mmpretrain::resnet/resnet50_8xb32_in1k.py')
    cfg = localize(stock)
    head = cfg.model.backbone.auxiliary.head
    assert cfg.model.backbone.auxiliary.type == 'SLM'
    assert head.type == 'ImageClassifier' and head.head == stock.model.head
    assert head.neck == stock.model.neck and 'backbone' not in head
    assert localize(stock, auxiliary='own').to_dict() == cfg.to_dict()
    shared = localize(stock, auxiliary='shared').model.backbone
    assert shared.auxiliary == dict(type='SLM')


def test_heads_of_several_tasks():
    """MMPretrain's MultiTaskHead knows its classes one level deeper."""
    task = dict(type='LinearClsHead', loss=dict(type='CrossEntropyLoss'))
    head = dict(
        type='MultiTaskHead',
        in_channels=64,
        task_heads=dict(shade=dict(task, num_classes=3), size=dict(task, num_classes=2)),
    )
    stock = classifier()
    stock.model.head = head
    stock.data_preprocessor.pop('num_classes')
    cfg = localize(stock, 2)
    assert cfg.model.backbone.auxiliary.head.head == head
    model = build_model(cfg).train()
    own = model.backbone.auxiliary[0].head.head.task_heads
    assert own.shade is not model.head.task_heads.shade
    before = own.size.fc.weight.clone()
    samples = []
    for label in (0, 1):
        sample = MultiTaskDataSample()
        for name in ('shade', 'size'):
            sample.set_field(DataSample().set_gt_label(label), name)
        samples.append(sample)
    trainer = Trainer(model)
    trainer.step(dict(inputs=torch.rand(2, 3, 32, 32), data_samples=samples))
    assert {'local_1.shade_loss', 'local_1.size_loss'} <= trainer.log.keys()
    assert not torch.equal(own.size.fc.weight, before)


def test_copies_don_t_augment_or_load():
    stock = load_config('mmpretrain::swin_transformer/swin-small_16xb64_in1k.py')
    stock.model.init_cfg = dict(type='Pretrained', checkpoint='absent.pth')
    assert 'augments' in stock.model.train_cfg
    head = localize(stock).model.backbone.auxiliary.head
    assert set(head) == {'type', 'neck', 'head'}


def test_own_heads_of_a_detector():
    cfg = localize('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', auxiliary='own')
    head = cfg.model.backbone.auxiliary.head
    assert head.bbox_head == cfg.model.bbox_head and head.train_cfg == cfg.model.train_cfg


def test_a_path(tmp_path):
    path = tmp_path / 'small.py'
    small_config().dump(path)
    assert localize(str(path)).model.backbone.num_modules == 4


def test_the_given_config_is_not_changed():
    cfg = small_config(
        custom_hooks=[dict(type='EMAHook')],
        custom_imports=dict(imports=['math'], allow_failed_imports=False),
    )
    before = copy.deepcopy(cfg.to_dict())
    auxiliary = dict(type='SLM', bank_dropout=0.1)
    local = localize(cfg, auxiliary=auxiliary, auxiliary_lr_mult=2.0)
    local.model.backbone.backbone.depth = 34
    local.model.backbone.auxiliary.bank_dropout = 0.9
    local.custom_hooks[0].type = 'None'
    assert cfg.to_dict() == before
    assert auxiliary == dict(type='SLM', bank_dropout=0.1)


def test_hooks_and_imports_are_kept():
    cfg = localize(
        small_config(
            custom_hooks=[
                dict(type='EMAHook', momentum=0.1),
                dict(type='FBAHook', scope='off'),
                dict(type='NumClassCheckHook'),
            ],
            custom_imports=dict(imports=['math', 'json'], allow_failed_imports=True),
        )
    )
    assert cfg.custom_hooks == [
        dict(type='EMAHook', momentum=0.1),
        dict(type='NumClassCheckHook'),
        dict(type='FBAHook', scope='past'),
    ]
    assert cfg.custom_imports == dict(imports=['fba_mm', 'math', 'json'], allow_failed_imports=True)
    one = localize(small_config(custom_imports=dict(imports='math')))
    assert one.custom_imports.imports == ['fba_mm', 'math']
    there = localize(small_config(custom_imports=dict(imports=['fba_mm', 'math'])))
    assert there.custom_imports.imports == ['fba_mm', 'math']


@pytest.mark.parametrize(
    'stock, local',
    [
        (dict(), 'LocalOptimWrapper'),
        (dict(type='OptimWrapper'), 'LocalOptimWrapper'),
        (dict(type='AmpOptimWrapper', loss_scale='dynamic'), 'AmpLocalOptimWrapper'),
        (dict(type='LocalOptimWrapper'), 'LocalOptimWrapper'),
    ],
)
def test_optimizer_wrappers(stock, local):
    settings = dict(optimizer=dict(type='SGD', lr=0.1), clip_grad=dict(max_norm=1.0), **stock)
    cfg = localize(small_config(optim_wrapper=settings), auxiliary='shared')
    assert cfg.optim_wrapper == dict(settings, type=local)


@pytest.mark.parametrize(
    'auxiliary, optimizer, clips, apply',
    [
        ('own', 'AdamW', True, 'eager'),
        ('light', 'SGD', True, 'eager'),
        ('own', 'AdamW', False, None),
        ('own', 'Lamb', True, None),
        ('pooled', 'SGD', True, None),
        ('shared', 'SGD', True, None),
    ],
)
def test_modules_with_heads_of_their_own_are_clipped_apart(auxiliary, optimizer, clips, apply):
    settings = dict(type='OptimWrapper', optimizer=dict(type=optimizer, lr=0.1))
    if clips:
        settings['clip_grad'] = dict(max_norm=1.0)
    stock = load_config(RETINANET)
    stock.optim_wrapper = settings
    assert localize(stock, auxiliary=auxiliary).optim_wrapper.get('apply') == apply
    assert localize(stock, auxiliary=auxiliary, apply='end').optim_wrapper.apply == 'end'
    stock.optim_wrapper['apply'] = 'end'
    assert localize(stock, auxiliary=auxiliary).optim_wrapper.apply == 'end'


def test_a_model_alone():
    cfg = localize(small_config(optim_wrapper=None))
    assert cfg.optim_wrapper is None and cfg.model.backbone.type == 'LocalBackbone'


def test_auxiliary_networks_with_an_optimizer_of_their_own():
    cfg = localize(
        small_config(
            optim_wrapper=dict(
                type='OptimWrapper',
                optimizer=dict(type='SGD', lr=0.01, weight_decay=1e-4),
                paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.1)}),
            )
        ),
        auxiliary_lr_mult=3.0,
        auxiliary_decay_mult=0.0,
    )
    model = build(cfg.model)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    found = {
        id(p): (group['lr'], group['weight_decay']) for group in groups for p in group['params']
    }
    for name, parameter in model.named_parameters():
        # The key for the whole backbone stands for what it stood for.
        expected = (
            (0.03, 0.0)
            if name.startswith('backbone.auxiliary.')
            else (0.001 if name.startswith('backbone.') else 0.01, 1e-4)
        )
        assert found[id(parameter)] == pytest.approx(expected), name
    assert 'paramwise_cfg' not in localize(small_config()).optim_wrapper
    only = localize(small_config(), auxiliary_decay_mult=0.5).optim_wrapper.paramwise_cfg
    assert only == dict(custom_keys={'backbone.auxiliary': dict(decay_mult=0.5)})


def test_there_and_back():
    stock = load_config(RETINANET)
    stock.custom_hooks = [dict(type='EMAHook')]
    for settings in (dict(), dict(apply='eager', auxiliary_lr_mult=2.0)):
        back = stock_form(localize(stock, **settings))
        assert back.model == stock.model
        assert back.custom_hooks == stock.custom_hooks
        given = {k: v for k, v in back.optim_wrapper.items() if k != 'paramwise_cfg'}
        assert given == stock.optim_wrapper


def test_types_given_as_classes_and_with_scopes(tmp_path):
    path = tmp_path / 'pure.py'
    path.write_text("""
from mmdet.models import ResNet, RetinaNet
from mmengine.hooks import EMAHook
from mmengine.optim import AmpOptimWrapper

from fba_mm import FBAHook

model = dict(type=RetinaNet, backbone=dict(type=ResNet, depth=18))
optim_wrapper = dict(type=AmpOptimWrapper)
custom_hooks = [dict(type=EMAHook), dict(type=FBAHook)]
""")
    stock = load_config(str(path))
    local = localize(str(path))
    assert local.optim_wrapper.type == 'AmpLocalOptimWrapper'
    assert [hook.type for hook in local.custom_hooks] == [EMAHook, 'FBAHook']
    assert stock_form(local).model == stock.model

    scoped = small_config(optim_wrapper=dict(type='mmengine.OptimWrapper'))
    local = localize(scoped)
    assert local.optim_wrapper.type == 'LocalOptimWrapper'
    local.model.backbone.type = LocalBackbone
    local.optim_wrapper.type = LocalOptimWrapper
    with pytest.raises(LocalLearningError, match='LocalBackbone already'):
        localize(local)
    back = stock_form(local)
    assert back.optim_wrapper.type == 'OptimWrapper' and back.model == scoped.model


def test_nothing_is_installed_by_reading_a_config(monkeypatch):
    def install(package, *args, **kwargs):
        raise AssertionError(f'{package} would be installed')

    monkeypatch.setattr('mmengine.hub.hub.install_package', install)
    with pytest.raises(LocalLearningError, match='not installed'):
        load_config('no_such_package::retinanet.py')


# What a user gets wrong


@pytest.mark.parametrize('model', [None, dict(), dict(type='Net', body=dict(type='Net'))])
def test_no_backbone(model):
    cfg = Config(dict(model=model) if model is not None else dict(lr=1))
    with pytest.raises(
        LocalLearningError, match='no model.backbone and no model.generator to cut: '
    ):
        localize(cfg)


def test_local_already():
    with pytest.raises(LocalLearningError, match='LocalBackbone already: change its num_modules'):
        localize(localize(small_config()))
    with pytest.raises(LocalLearningError, match='no LocalBackbone'):
        stock_form(small_config())


def test_constructors_that_go_by_the_names_of_known_backbones():
    constructor = 'mmdet.LearningRateDecayOptimizerConstructor'
    cfg = small_config(
        optim_wrapper=dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW'),
            constructor=constructor,
            paramwise_cfg=dict(decay_rate=0.7, decay_type='layer_wise', num_layers=6),
        )
    )
    local = localize(cfg)
    assert local.optim_wrapper.constructor == 'LocalOptimWrapperConstructor'
    assert local.optim_wrapper.paramwise_cfg.stock_constructor == constructor
    assert stock_form(local).optim_wrapper == cfg.optim_wrapper


@pytest.mark.parametrize(
    'name, backbone',
    [
        ('vision_transformer/vit-base-p16_32xb128-mae_in1k.py', 'VisionTransformer'),
        ('swin_transformer/swin-small_16xb64_in1k.py', 'SwinTransformer'),
        ('convnext/convnext-tiny_32xb128_in1k.py', 'ConvNeXt'),
        ('vgg/vgg16bn_8xb32_in1k.py', 'VGG'),
        ('resnet/resnet50_8xb32_in1k.py', 'ResNet'),
    ],
)
def test_classifiers(name, backbone):
    stock = load_config(f'mmpretrain::{name}')
    cfg = localize(stock)
    assert cfg.model.backbone.backbone.type == backbone
    assert cfg.optim_wrapper.type == 'LocalOptimWrapper'
    # Settings of parameters are kept, and clipping, which makes gradients wait for the end.
    for key in ('paramwise_cfg', 'clip_grad', 'optimizer'):
        assert cfg.optim_wrapper.get(key) == stock.optim_wrapper.get(key)
    assert cfg.model.get('train_cfg') == stock.model.get('train_cfg')


def test_unknown_optimizer_wrapper():
    cfg = small_config(optim_wrapper=dict(type='ApexOptimWrapper', optimizer=dict(type='SGD')))
    with pytest.raises(
        LocalLearningError, match='type=ApexOptimWrapper has no local form: use one of OptimWrapper'
    ):
        localize(cfg)


@pytest.mark.parametrize(
    'content, message',
    [
        ('model = dict(', r'bad.py cannot be read: \w*SyntaxError'),
        ('model = undefined', 'bad.py cannot be read: NameError.*undefined'),
        ("_base_ = './missing.py'", 'missing.py'),
        ("raise KeyError('two\\nlines')", 'bad.py cannot be read: KeyError: .*two'),
    ],
)
def test_configs_that_cannot_be_read(tmp_path, content, message):
    path = tmp_path / 'bad.py'
    path.write_text(content)
    with pytest.raises(LocalLearningError, match=message) as caught:
        localize(str(path))
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'name, message',
    [
        ('configs/nowhere.py', 'config configs/nowhere.py not found .*: check its path'),
        ('mmdet::retinanet/nowhere.py', 'config mmdet::retinanet/nowhere.py not found'),
        ('mmdet::gn+ws/nowhere.py', 'config mmdet::gn.ws/nowhere.py not found .*: check its name'),
        ('no_such_package::retinanet.py', 'the package no_such_package is not installed'),
        ('configs', 'config configs '),
    ],
)
def test_configs_that_are_not_there(name, message):
    with pytest.raises(LocalLearningError, match=message) as caught:
        localize(name)
    assert '\n' not in str(caught.value)


def test_names_with_other_characters_than_letters():
    assert (
        load_config('mmdet::gn+ws/faster-rcnn_r50_fpn_gn-ws-all_1x_coco.py').model.type
        == 'FasterRCNN'
    )
    assert (
        load_config('mmdet::legacy_1.x/retinanet_r50_fpn_1x_coco_v1.py').model.type == 'RetinaNet'
    )


def test_light_segmentors_learn_the_models_labels():
    stock = load_config('mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py')
    loss = dict(type='CrossEntropyLoss', class_weight=[1.0] * 18 + [2.0])
    stock.model.decode_head.ignore_index, stock.model.decode_head.loss_decode = 7, loss
    cfg = localize(stock, auxiliary='light')
    expected = dict(
        type='LightFCN',
        channels=128,
        num_classes=19,
        ignore_index=7,
        align_corners=False,
        loss_decode=loss,
    )
    assert cfg.model.backbone.auxiliary == dict(type='SLM', head=expected)
    assert localize(stock).model.backbone.auxiliary == cfg.model.backbone.auxiliary
    assert stock_form(cfg).model == stock.model
    # A quarter of the model's own channels, but for small ones.
    stock.model.decode_head.channels = 256
    assert 'channels' not in localize(stock, auxiliary='light').model.backbone.auxiliary.head
    # Of a cascade it is the last head that makes the prediction; losses that look at several
    # outputs are not taken over.
    first = dict(stock.model.decode_head, num_classes=2)
    last = dict(stock.model.decode_head, loss_decode=[loss, dict(type='BoundaryLoss')])
    stock.model.decode_head = [first, last]
    head = localize(stock, auxiliary='light').model.backbone.auxiliary.head
    assert head.num_classes == 19 and 'loss_decode' not in head
    own = localize(stock, auxiliary='own').model.backbone.auxiliary.head
    assert own.decode_head == [first, last] and 'pretrained' not in own and 'backbone' not in own
    del stock.model.decode_head[1]['num_classes']
    with pytest.raises(
        LocalLearningError, match='EncoderDecoder is none that tells its num_classes'
    ):
        localize(stock, auxiliary='light')


def test_settings_of_a_model_wrapper_are_kept():
    stock = load_config(RETINANET)
    stock.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel', find_unused_parameters=True, static_graph=True
    )
    assert localize(stock).model_wrapper_cfg == dict(
        type='LocalDataParallel', find_unused_parameters=True
    )


def test_a_model_wrapper_for_local_learning_is_kept():
    stock = load_config(RETINANET)
    stock.model_wrapper_cfg = dict(type='LocalModuleParallel', modules_per_process=[3, 1])
    assert localize(stock).model_wrapper_cfg == stock.model_wrapper_cfg


PURE = """
from mmengine.hooks import EMAHook
from mmengine.optim import AmpOptimWrapper
from torch.nn import BatchNorm2d
from torch.optim import SGD
from mmdet.engine.optimizers import LearningRateDecayOptimizerConstructor
from mmdet.models import FPN, DetDataPreprocessor, ResNet, RetinaHead, RetinaNet
from mmdet.models.losses import FocalLoss, L1Loss
from mmdet.models.task_modules import (AnchorGenerator, DeltaXYWHBBoxCoder, MaxIoUAssigner,
                                       PseudoSampler)

default_scope = SCOPE
model = dict(
    type=RetinaNet,
    data_preprocessor=dict(type=DetDataPreprocessor),
    backbone=dict(type=ResNet, depth=18, base_channels=8, stem_channels=8,
                  norm_cfg=dict(type=BatchNorm2d), norm_eval=False),
    neck=dict(type=FPN, in_channels=[8, 16, 32, 64], out_channels=16, start_level=1, num_outs=3),
    bbox_head=dict(
        type=RetinaHead, num_classes=3, in_channels=16, stacked_convs=1, feat_channels=16,
        anchor_generator=dict(type=AnchorGenerator, octave_base_scale=4, scales_per_octave=1,
                              ratios=[1.], strides=[8, 16, 32]),
        bbox_coder=dict(type=DeltaXYWHBBoxCoder), loss_cls=dict(type=FocalLoss, use_sigmoid=True),
        loss_bbox=dict(type=L1Loss)),
    train_cfg=dict(assigner=dict(type=MaxIoUAssigner, pos_iou_thr=.5, neg_iou_thr=.4),
                   sampler=dict(type=PseudoSampler), allowed_border=-1, pos_weight=-1))
optim_wrapper = dict(type=AmpOptimWrapper, optimizer=dict(type=SGD, lr=.01))
custom_hooks = [dict(type=EMAHook)]
"""


@pytest.mark.parametrize('auxiliary', ['own', 'light', 'pooled'])
@pytest.mark.parametrize('scope', ["'mmdet'", 'None'])
def test_what_is_written_of_a_pure_python_config_is_read_again(tmp_path, auxiliary, scope):
    """With classes for types, and in MMDetection's form, without a scope."""
    (tmp_path / 'pure.py').write_text(PURE.replace('SCOPE', scope))
    cfg = localize(str(tmp_path / 'pure.py'), auxiliary=auxiliary)
    for name, written in (('local', cfg), ('stock', stock_form(cfg))):
        written.dump(tmp_path / f'{name}.py')
        again = load_config(str(tmp_path / f'{name}.py'))
        assert again.to_dict() == written.to_dict()
        assert again.default_scope == (None if scope == 'None' else 'mmdet')
        with mock.patch.object(DefaultScope, '_instance_dict', type(DefaultScope._instance_dict)()):
            model = build_model(again)  # As in a process that has made no scope yet.
        assert type(model).__name__ == 'RetinaNet'
        assert isinstance(model.backbone, LocalBackbone) == (name == 'local')
    assert again.model.type == 'mmdet.models.RetinaNet'
    assert type_name(again.custom_hooks[0].type) == 'EMAHook'


def test_classes_in_a_config_are_written_by_name():
    cfg = small_config(
        optim_wrapper=dict(
            type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1), constructor=None
        )
    )
    cfg.model.backbone.type = ResNet
    cfg.custom_hooks = [dict(type=EMAHook, function=build, kept=(int, None))]
    written = localize(cfg)
    assert written.model.backbone.backbone.type == 'mmdet.models.backbones.resnet.ResNet'
    assert written.custom_hooks[0] == dict(
        type='mmengine.hooks.ema_hook.EMAHook', function='tests.conftest.build', kept=(int, None)
    )
    assert cfg.model.backbone.type is ResNet


FCN = 'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py'


@pytest.mark.parametrize(
    'name, parts',
    [
        (RETINANET, ['bbox_head.loss_cls']),
        ('mmdet::gfl/gfl_r50_fpn_1x_coco.py', ['bbox_head.loss_cls']),
        ('mmdet::vfnet/vfnet_r50_fpn_1x_coco.py', ['bbox_head.loss_cls']),
        (FCN, ['decode_head', 'auxiliary_head']),
        ('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', ['roi_head.mask_head']),
        # Neither a softmax over few boxes nor what picks its pixels itself.
        ('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', []),
        (
            'mmseg::ocrnet/ocrnet_hr18_4xb2-40k_cityscapes-512x1024.py',
            ['decode_head.0', 'decode_head.1'],
        ),
        ('mmseg::point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024.py', ['decode_head.0']),
        ('mmpretrain::resnet/resnet50_8xb32_in1k.py', []),
    ],
)
def test_what_is_computed_in_slices(name, parts):
    stock, cfg = load_config(name), sliced(name)
    model = stock.model.to_dict()
    for part in parts:
        found, changed = cfg.model, model
        for key in part.split('.'):
            key = int(key) if key.isdigit() else key
            found, changed = found[key], changed[key]
        assert found.type == 'InSlices'
        changed.update(type='InSlices', of=found.of)
    assert cfg.model.to_dict() == model
    assert (cfg.get('custom_imports') or {}).get('imports') == (['fba_mm'] if parts else None)
    assert {k for k in cfg if cfg.get(k) != stock.get(k)} <= {'model', 'custom_imports'}
    assert localize(name, slices=False).model.get('bbox_head') == stock.model.get('bbox_head')
    if parts:
        assert stock_form(localize(name)).model == stock.model


def test_classes_as_types():
    from mmdet.models import FocalLoss

    cfg = small_config()
    cfg.model.bbox_head.loss_cls.type = FocalLoss
    found = sliced(cfg).model.bbox_head.loss_cls
    assert found.type == 'InSlices' and found.of == f'{FocalLoss.__module__}.FocalLoss'
    assert type(MODELS.build(found)).__name__ == 'SlicedFocalLoss'
    assert sliced(sliced(cfg)).model == sliced(cfg).model


@pytest.mark.parametrize('recompute', [3, 'blocks', ['layer1.1', 'layer3.0']])
def test_exact_checkpointing_leaves_the_rest_alone(recompute):
    stock = small_config(
        custom_hooks=[dict(type='EMAHook')],
        model_wrapper_cfg=dict(type='MMDistributedDataParallel'),
    )
    cfg = checkpointed(stock, recompute)
    assert cfg.model.backbone == dict(
        type='LocalBackbone', backbone=stock.model.backbone, num_modules=1, recompute=recompute
    )
    assert {k for k in cfg if cfg.get(k) != stock.get(k)} == {'model', 'custom_imports'}
    assert build(cfg.model).backbone.spans
    one = checkpointed(stock, recompute, recompute_batch_size=1)
    assert one.model.backbone == dict(cfg.model.backbone, recompute_batch_size=1)
    assert stock_form(cfg).model == stock.model
    assert stock_form(sliced(cfg)).model == stock.model
    with pytest.raises(
        LocalLearningError, match='is a LocalBackbone already: change its recompute'
    ):
        checkpointed(cfg)
    both = localize(stock, 2, recompute=recompute)
    assert both.model.backbone.recompute == recompute
    assert len(build(both.model).backbone.spans) == 2


@pytest.mark.parametrize(
    'name, parts',
    [
        (RETINANET, {'neck': 'FPN', 'bbox_head': 'RetinaHead'}),
        (
            'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
            {'neck': 'FPN', 'rpn_head': 'RPNHead'},
        ),
        ('mmdet::detr/detr_r50_8xb2-150e_coco.py', {'neck': 'ChannelMapper'}),
        (FCN, {}),
    ],
)
def test_necks_and_dense_heads_are_recomputed_on_request(name, parts):
    cfg = checkpointed(name, 3, head=True)
    found = {
        k: v.of
        for k, v in cfg.model.items()
        if isinstance(v, dict) and v.get('type') == 'Recomputed'
    }
    assert found == parts
    assert stock_form(cfg).model == load_config(name).model
