"""Losses that run the backbone several times, or on other images than the batch."""

from unittest import mock

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from torch import nn

from fba_mm import LocalBackbone, LocalLearningError, LocalOptimWrapper, localize
from fba_mm.engine.fba_hook import check_local_training
from fba_mm.preflight.building import build_model

from ..conftest import batch, retinanet
from ..local_training import Trainer

RESNET = dict(type='ResNet', depth=18, base_channels=8, stem_channels=8, zero_init_residual=False)
NECK = dict(
    type='NonLinearNeck', in_channels=64, hid_channels=16, out_channels=16, with_avg_pool=True
)
PREDICTOR = dict(
    type='NonLinearNeck', in_channels=16, hid_channels=16, out_channels=16, with_avg_pool=False
)
LATENT = dict(type='LatentPredictHead', loss=dict(type='CosineSimilarityLoss'), predictor=PREDICTOR)
CONTRASTIVE = dict(type='ContrastiveHead', loss=dict(type='CrossEntropyLoss'))
SELF_SUPERVISED = dict(
    SimSiam=dict(neck=NECK, head=LATENT),
    BarlowTwins=dict(
        neck=NECK,
        head=dict(
            type='LatentCrossCorrelationHead',
            in_channels=16,
            loss=dict(type='CrossCorrelationLoss'),
        ),
    ),
    BYOL=dict(neck=NECK, head=LATENT, base_momentum=0.01),
    MoCo=dict(
        queue_len=16,
        feat_dim=16,
        momentum=0.01,
        head=CONTRASTIVE,
        neck=dict(type='MoCoV2Neck', in_channels=64, hid_channels=16, out_channels=16),
    ),
    SimCLR=dict(neck=NECK, head=CONTRASTIVE),
)


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def self_supervised(kind, num_modules=3):
    model = dict(
        type=kind,
        backbone=RESNET,
        data_preprocessor=dict(type='SelfSupDataPreprocessor'),
        **SELF_SUPERVISED[kind],
    )
    cfg = Config(dict(model=model, default_scope='mmpretrain'))
    torch.manual_seed(0)
    model = build_model(cfg if num_modules is None else localize(cfg, num_modules))
    return model.train()


def views(count=2):
    torch.manual_seed(0)
    return dict(inputs=[torch.rand(4, 3, 32, 32) for _ in range(count)], data_samples=[None] * 4)


def unchanged(model, step):
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(LocalLearningError, match='several times.*contrastive.*num_modules=1'):
        step()
    return all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize('kind', ['SimSiam', 'BarlowTwins'])
@pytest.mark.parametrize('num_modules', [3, 1])
def test_views_one_after_the_other(kind, num_modules):
    """Refused before the first parameter has changed, however they are applied."""
    model = self_supervised(kind, num_modules)
    trainer = Trainer(model, apply='eager')
    if num_modules == 1:
        assert trainer.step(views())['loss'] == pytest.approx(
            self_supervised(kind, None)(**views(), mode='loss')['loss'].item(), rel=1e-5
        )
    else:
        assert unchanged(model, lambda: trainer.step(views()))


@pytest.mark.parametrize(
    'kind, where',
    [('MoCo', 'backbone, encoder_k.module.0'), ('BYOL', 'backbone, target_net.module.0')],
)
def test_copies_of_the_backbone(kind, where):
    model = self_supervised(kind)
    with pytest.raises(LocalLearningError, match=rf'2 times \({where}\).*teacher-student'):
        check_local_training(model, LocalOptimWrapper)


def test_views_in_one_pass():
    """SimCLR's loss joins its views itself: each module runs on both, and is trained."""
    model = self_supervised('SimCLR')
    trainer = Trainer(model)
    data = views()
    images = torch.stack(data['inputs'], 1).flatten(0, 1)
    first, _, _ = model.backbone._run_module(0, images, dict(images=images))
    seen, before = [], {name: p.clone() for name, p in model.named_parameters()}
    loss_of = type(model.backbone.auxiliary[0]).loss

    def loss(self, x, levels, step):
        seen.append(x.detach())
        return loss_of(self, x, levels, step)

    with mock.patch.object(type(model.backbone.auxiliary[0]), 'loss', loss):
        trainer.step(data)
    assert len(seen[0]) == 8
    torch.testing.assert_close(seen[0], first.detach())
    assert all(loss > 0 for name, loss in trainer.log.items() if name.endswith('.loss'))
    same = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert not [name for name in same if name.endswith('conv1.weight')]


class Mixing(BaseModel):
    """Shuffles its images before the backbone, and its labels with them."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.fc = nn.Linear(64, 2)
        self.shuffles = True

    def loss(self, inputs, data_samples):
        order = torch.randperm(len(inputs)) if self.shuffles else torch.arange(len(inputs))
        features = self.backbone(inputs[order])[-1].mean((2, 3))
        return dict(loss=nn.functional.cross_entropy(self.fc(features), data_samples[order]))

    def forward(self, inputs, data_samples=None, mode='loss'):
        return self.loss(inputs, data_samples)


@pytest.mark.parametrize('shuffles', [True, False])
def test_images_that_the_loss_changes_at_random(shuffles):
    torch.manual_seed(0)
    model = Mixing(LocalBackbone(RESNET, 2)).train()
    model.shuffles = shuffles
    trainer = Trainer(model)
    data = dict(inputs=torch.rand(6, 3, 32, 32), data_samples=torch.arange(6) % 2)
    if shuffles:
        with pytest.raises(LocalLearningError, match='other images for each module'):
            trainer.step(data)
    else:
        assert trainer.step(data)['loss'] > 0


class AskingItself(Mixing):
    """Looks at its own features before it computes its loss."""

    def forward(self, inputs, data_samples=None, mode='loss'):
        if mode == 'tensor':
            return self.backbone(inputs)
        with torch.set_grad_enabled(self.keeps_graph):
            self(inputs, mode='tensor')
        return self.loss(inputs, data_samples)


@pytest.mark.parametrize('keeps_graph', [True, False])
def test_a_loss_that_asks_for_features_on_its_way(keeps_graph):
    """What it asks for without a graph is no second pass; modules are trained all the same."""
    model = AskingItself(LocalBackbone(RESNET, 2)).train()
    model.keeps_graph = keeps_graph
    model.shuffles = False
    trainer = Trainer(model)
    data = dict(inputs=torch.rand(6, 3, 32, 32), data_samples=torch.arange(6) % 2)
    if keeps_graph:
        with pytest.raises(LocalLearningError, match='several times'):
            trainer.step(data)
    else:
        trainer.step(data)
        assert trainer.log['local_1.loss'] > 0


@pytest.mark.parametrize('kind', ['SoftTeacher', 'QDTrack'])
def test_detectors_inside_another_model(kind):
    cfg = Config(dict(model=dict(type=kind, detector=dict(type='RetinaNet', backbone=RESNET))))
    with pytest.raises(LocalLearningError, match=f'{kind} has its backbone in model.detector'):
        localize(cfg)


def test_arguments_beside_the_images():
    """As of backbones that are told a mask; back-propagation needs no family."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x, mask, scale=1.0):
            return self.conv(x * mask) * scale

    backbone = LocalBackbone(dict(type=Masked), 1)
    x, mask = torch.rand(1, 3, 4, 4), torch.ones(1, 1, 4, 4)
    for mode in (True, False):
        backbone.train(mode)
        torch.testing.assert_close(backbone(x, mask, scale=2.0), 2 * backbone.backbone(x, mask))


def gfl(kind, **settings):
    """A small GFL, or one that learns from another."""
    head = dict(
        type='GFLHead',
        num_classes=3,
        in_channels=16,
        stacked_convs=1,
        feat_channels=16,
        norm_cfg=None,
        anchor_generator=dict(
            type='AnchorGenerator',
            ratios=[1.0],
            octave_base_scale=8,
            scales_per_octave=1,
            strides=[8, 16, 32],
        ),
        reg_max=4,
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0),
        loss_dfl=dict(type='DistributionFocalLoss'),
        loss_bbox=dict(type='GIoULoss'),
    )
    if kind != 'GFL':
        head.update(type='LDHead', loss_ld=dict(type='KnowledgeDistillationKLDivLoss', T=10))
    cfg = retinanet(num_modules=None)
    cfg['neck'].update(num_outs=3)
    cfg.update(
        type=f'mmdet.{kind}',
        bbox_head=head,
        train_cfg=dict(
            assigner=dict(type='ATSSAssigner', topk=9), allowed_border=-1, pos_weight=-1
        ),
        **settings,
    )
    return cfg


def test_a_teacher_of_its_own_makes_no_second_pass():
    """Distillation in one model: the teacher has another backbone, the student runs once."""
    cfg = gfl(
        'KnowledgeDistillationSingleStageDetector', teacher_config=ConfigDict(model=gfl('GFL'))
    )
    cfg = localize(Config(dict(model=cfg, default_scope='mmdet')), 3, auxiliary='shared')
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = build_model(cfg)
        model.train()
        teacher = {name: p.clone() for name, p in model.teacher_model.state_dict().items()}
        trainer = Trainer(model)
        trainer.step(batch())
    assert {'local_1.loss_ld', 'local_2.loss_ld'} <= trainer.log.keys()
    assert all(
        torch.equal(p, teacher[name]) for name, p in model.teacher_model.state_dict().items()
    )


def test_tracklets_in_one_pass():
    """MMDetection's re-identification joins the images of its tracklets to one batch."""
    from mmdet.structures import ReIDDataSample

    cfg = dict(
        type='mmdet.BaseReID',
        data_preprocessor=dict(type='mmdet.ReIDDataPreprocessor'),
        backbone=dict(RESNET, type='mmpretrain.ResNet'),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(
            type='mmdet.LinearReIDHead',
            num_fcs=1,
            in_channels=64,
            fc_channels=16,
            out_channels=8,
            num_classes=4,
            loss_cls=dict(type='mmpretrain.CrossEntropyLoss'),
        ),
    )
    torch.manual_seed(0)
    model = build_model(localize(Config(dict(model=cfg, default_scope='mmdet')), 2)).train()
    samples = [ReIDDataSample().set_gt_label(label) for label in (0, 1, 2, 3)]
    trainer = Trainer(model)
    trainer.step(dict(inputs=torch.rand(1, 4, 3, 32, 32), data_samples=samples))
    assert trainer.log['local_1.loss'] > 0
