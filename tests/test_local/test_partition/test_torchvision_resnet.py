"""ResNets of torchvision and timm: whole classifiers, and those in detectors and segmentors."""

import copy
from functools import partial

import pytest
import torch
import torchvision
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from fba_mm import LocalBackbone, LocalLearningError
from fba_mm.local.partition import levels_of, unroll

from .family_checks import check_forward, check_parameters, stages_of

small = partial(ResNet, BasicBlock, [1, 2, 1, 1], num_classes=5)


def layers(block=BasicBlock, returned=('layer2', 'layer4'), **kwargs):
    return IntermediateLayerGetter(
        ResNet(block, [1, 2, 1, 1], **kwargs), {name: f'out of {name}' for name in returned}
    )


def dilated():
    return layers(Bottleneck, replace_stride_with_dilation=[False, True, True])


@pytest.mark.parametrize('build', [small, layers, dilated])
def test_segments_one_by_one_are_the_forward(build):
    cfg = dict(type=build) if build is not small else dict(type=_small)
    check_forward(cfg, (3, 32, 48))
    if build is not dilated:
        check_parameters(cfg)


def _small():
    return small()


def test_stages():
    assert stages_of(dict(type=_small)) == [
        (-1, 64, 4),
        (0, 64, 4),
        (1, 128, 8),
        (1, 128, 8),
        (2, 256, 16),
        (3, 512, 32),
    ]
    assert [s.dilation for s in unroll(dilated()).segments] == [1, 1, 1, 1, 1, 2]


def test_levels_have_the_names_of_the_getter():
    getter = layers()
    wrapped = LocalBackbone(getter, num_modules=2).eval()
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = getter.eval()(images)
        with wrapped.answering(levels_of(expected)):
            answered = wrapped.train()(images)
    assert list(answered) == list(expected) == ['out of layer2', 'out of layer4']
    assert all(answered[name] is expected[name] for name in expected)


def test_refused():
    for network, message in (
        (
            IntermediateLayerGetter(torchvision.models.resnet18(), {'relu': 'x', 'layer1': 'y'}),
            'is no',
        ),
        (
            IntermediateLayerGetter(torchvision.models.mobilenet_v2(), {'features': 'x'}),
            'take a ResNet',
        ),
    ):
        with pytest.raises(LocalLearningError, match=message):
            unroll(network)
    network = small()
    network.fc = torch.nn.Sequential(torch.nn.Linear(512, 5))
    with pytest.raises(LocalLearningError, match='ResNet.fc is a Sequential'):
        unroll(network)

    class Other(ResNet):
        def _forward_impl(self, x):
            return super()._forward_impl(x) * 2

    with pytest.raises(LocalLearningError, match='another _forward_impl'):
        unroll(Other(BasicBlock, [1, 1, 1, 1]))


@pytest.mark.parametrize(
    'name, kwargs',
    [
        ('resnet18', {}),
        ('resnet26d', dict(drop_rate=0.3)),
        ('deit_tiny_patch16_224', dict(img_size=32)),
        ('vit_tiny_patch16_224', dict(img_size=32, global_pool='avg', drop_path_rate=0.1)),
    ],
)
def test_timm(name, kwargs):
    """Their segments, one by one, are the forward, with gradients for every parameter."""
    timm = pytest.importorskip('timm')
    network = timm.create_model(name, num_classes=5, **kwargs)
    twin = copy.deepcopy(network)
    wrapped = LocalBackbone(network, num_modules=1, recompute='blocks')  # Compares the outputs.
    images = torch.rand(2, 3, 32, 32)
    outputs = []
    for model in (twin, wrapped):
        torch.manual_seed(1)
        outputs.append(model.train()(images))
        outputs[-1].square().sum().backward()
    assert torch.equal(*outputs)
    others = dict(twin.named_parameters())
    for key, parameter in network.named_parameters():
        assert torch.equal(parameter.grad, others[key].grad), key


def test_timm_without_scores():
    timm = pytest.importorskip('timm')
    for name in ('resnet18', 'deit_tiny_patch16_224'):
        with pytest.raises(LocalLearningError, match='num_classes=0'):
            unroll(timm.create_model(name, num_classes=0))
