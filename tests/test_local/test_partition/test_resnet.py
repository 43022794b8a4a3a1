"""ResNets of every package and kind, unrolled: the segments are the whole."""

import copy

import pytest
import torch
from mmengine.registry import MODELS

from fba_mm import LocalLearningError
from fba_mm.local.partition import unroll
from fba_mm.local.partition.resnet import ReducedResidualBlock

from ...conftest import retinanet

NARROW = dict(base_channels=8, stem_channels=8)
BACKBONES = [
    dict(type='mmdet.ResNet', depth=18),
    dict(type='mmdet.ResNet', depth=50, style='caffe'),
    dict(
        type='mmdet.ResNet',
        depth=18,
        num_stages=3,
        out_indices=(0, 2),
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
    ),
    dict(type='mmdet.ResNet', depth=18, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)),
    dict(
        type='mmdet.ResNet',
        depth=50,
        plugins=[
            dict(
                cfg=dict(type='ContextBlock', ratio=0.5),
                stages=(False, True, True, True),
                position='after_conv3',
            )
        ],
    ),
    dict(type='mmdet.ResNetV1d', depth=50),
    dict(type='mmdet.ResNeXt', depth=50, groups=2, base_width=4),
    dict(type='mmdet.Res2Net', depth=50, scales=2, base_width=4),
    dict(type='mmdet.ResNeSt', depth=50, reduction_factor=2),
    dict(type='mmdet.RegNet', arch='regnetx_400mf'),
    dict(type='mmpretrain.RegNet', arch='regnetx_400mf', out_indices=(1, 3)),
    dict(type='mmpretrain.ResNet', depth=18, out_indices=(0, 1, 2, 3)),
    dict(type='mmpretrain.ResNet', depth=18, out_indices=(3,), style='pytorch'),
    dict(type='mmpretrain.ResNetV1c', depth=18, out_indices=(1, 3)),
    dict(type='mmpretrain.ResNetV1d', depth=50),
    dict(type='mmpretrain.ResNeXt', depth=50, groups=2, width_per_group=4),
    dict(type='mmpretrain.SEResNet', depth=50, se_ratio=4),
    dict(type='mmpretrain.SEResNeXt', depth=50, groups=2, width_per_group=4, se_ratio=4),
    dict(type='mmpretrain.Res2Net', depth=50, scales=2, base_width=4),
    dict(type='mmpretrain.ResNeSt', depth=50, reduction_factor=2),
]


def built(cfg):
    settings = dict(NARROW, **cfg)
    settings.update(zero_init_residual=False)
    return MODELS.build(settings)


@pytest.mark.parametrize('cfg', BACKBONES, ids=lambda cfg: '-'.join(map(str, cfg.values()))[:40])
def test_segments_one_by_one_are_the_forward(cfg):
    backbone = built(cfg)
    twin = copy.deepcopy(backbone)
    segments = unroll(backbone).segments
    x = torch.rand(2, 3, 64, 96)
    for mode in (True, False):
        twin.train(mode)
        backbone.train(mode)
        expected, levels, out = twin(x), {}, x
        for segment in segments:
            out = segment.run(backbone, out)
            if segment.level is not None:
                levels[segment.level] = out
        expected = expected if isinstance(expected, tuple) else (expected,)
        assert sorted(levels) == list(range(len(expected)))
        assert all(torch.equal(levels[i], level) for i, level in enumerate(expected))
    assert all(torch.equal(v, backbone.state_dict()[k]) for k, v in twin.state_dict().items())


@pytest.mark.parametrize('cfg', BACKBONES, ids=lambda cfg: '-'.join(map(str, cfg.values()))[:40])
def test_every_parameter_belongs_to_one_segment(cfg):
    backbone = built(cfg)
    segments = unroll(backbone).segments
    listed = [id(p) for segment in segments for p in segment.parameters(backbone)]
    assert sorted(listed) == sorted(id(p) for p in backbone.parameters())
    assert segments[0].name == 'stem' and segments[0].stage == -1
    assert [s.name for s in segments[1:]] == [
        f'{layer}.{name}'
        for layer in backbone.res_layers
        for name, _ in backbone.get_submodule(layer).named_children()
    ]
    assert [s.stage for s in segments[1:]] == [int(s.name[5]) - 1 for s in segments[1:]]


@pytest.mark.parametrize('depth, kernels', [(18, [3, 3]), (50, [1, 3, 1])])
def test_reduced_blocks_are_of_the_backbones_kind(depth, kernels):
    for norm, kind in (('BN', torch.nn.BatchNorm2d), ('GN', torch.nn.GroupNorm)):
        backbone = MODELS.build(retinanet(depth, None, norm=norm)['backbone'])
        block = unroll(backbone).reduced_block(8, 16, 2)
        convolutions = [m for m in block.residual.modules() if isinstance(m, torch.nn.Conv2d)]
        assert [c.kernel_size[0] for c in convolutions] == kernels
        assert {type(m) for m in block.modules() if 'Norm' in type(m).__name__} == {kind}
        assert all(p.requires_grad for p in block.parameters())


def test_blocks_train_where_a_frozen_norm_of_the_backbone_could_not():
    norm = dict(type='BN', requires_grad=False, eps=0)
    backbone = MODELS.build(dict(retinanet(18, None)['backbone'], norm_cfg=norm, norm_eval=True))
    block = unroll(backbone).reduced_block(8, 16, 2).train()
    assert all(p.requires_grad for p in block.parameters())
    assert block(torch.rand(2, 8, 8, 8)).isfinite().all()


@pytest.mark.parametrize('bottleneck', [True, False])
@pytest.mark.parametrize('stride, size', [(1, 9), (2, 5), (4, 3)])
def test_reduced_block(bottleneck, stride, size):
    block = ReducedResidualBlock(8, 16, stride, bottleneck)
    x = torch.rand(2, 8, 9, 9, requires_grad=True)
    y = block(x)
    assert y.shape == (2, 16, size, size) and y.min() >= 0
    y.sum().backward()
    assert x.grad.abs().sum() > 0
    same = ReducedResidualBlock(8, 8, 1, bottleneck)
    assert isinstance(same.shortcut, torch.nn.Identity)
    torch.testing.assert_close(same(x), torch.relu(same.residual(x) + x), rtol=1e-4, atol=1e-5)


def test_descendants_of_trident_resnet_are_refused():
    from mmdet.models.backbones import TridentResNet

    class Descendant(TridentResNet):
        pass

    backbone = Descendant(
        depth=50,
        num_branch=2,
        test_branch_idx=1,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        trident_dilations=(1, 2),
        num_stages=3,
        out_indices=(2,),
        base_channels=8,
    )
    with pytest.raises(LocalLearningError, match='Descendant cannot be cut: .* a list of maps'):
        unroll(backbone)
