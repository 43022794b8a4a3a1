"""Families of backbones go by the functions that a backbone runs, not by names."""

import re
import sys
from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModule, Sequential
from mmengine.registry import MODELS
from mmengine.utils import import_modules_from_strings
from torch import nn

from fba_mm import (
    LocalBackbone,
    LocalLearningError,
    Segment,
    Unrolled,
    backbone_family,
    run_submodule,
)
from fba_mm.local.partition import family, unroll
from fba_mm.local.partition.resnet import ReducedResidualBlock, unroll_resnet


class Chain(nn.Module):
    """Three convolutions; two maps."""

    def __init__(self):
        super().__init__()
        self.steps = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in ((3, 4), (4, 8), (8, 16))
        )

    def forward(self, x):
        first = self.begin(x)
        return first, self.steps[2](first)

    def begin(self, x):
        return self.steps[1](self.steps[0](x))


def segments_of_chain(backbone):

    def run(index):
        return lambda backbone, x: run_submodule(backbone, x, f'steps.{index}')

    return Unrolled(
        [
            Segment(f'step {i}', run(i), (f'steps.{i}',), stage=i, level=None if i == 0 else i - 1)
            for i in range(3)
        ],
        ReducedResidualBlock,
    )


@pytest.fixture(autouse=True)
def families(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(family, '_FAMILIES', list(family._FAMILIES))
    monkeypatch.setattr(MODELS, '_module_dict', dict(MODELS._module_dict))


@pytest.fixture
def chain():
    MODELS.register_module(module=Chain)
    backbone_family(Chain, replaces=('begin',))(segments_of_chain)


def test_a_new_family_is_one_function(chain):
    wrapped = LocalBackbone(dict(type='Chain'), 'blocks')
    assert wrapped.num_modules == 3
    assert [len(auxiliary.blocks) for auxiliary in wrapped.auxiliary] == [2, 1]
    x = torch.rand(1, 3, 16, 16)
    maps = wrapped.eval()(x)
    assert [m.shape for m in maps] == [(1, 8, 4, 4), (1, 16, 2, 2)]


class Named(Chain):
    """Runs as its parent."""


class Otherwise(Chain):
    def forward(self, x):
        return super().forward(-x)


class BeginsOtherwise(Chain):
    def begin(self, x):
        return super().begin(-x)


class FlippingList(nn.ModuleList):
    def forward(self, x):
        return x


class Inside(Chain):
    def __init__(self):
        super().__init__()
        self.steps = FlippingList(self.steps)


@pytest.mark.parametrize(
    'backbone, reason',
    [
        (Otherwise, r'it runs by \S+test_family.Otherwise.forward, which is none of the families'),
        (
            BeginsOtherwise,
            r'it runs as Chain does, but with another begin, \S+test_family.BeginsOtherwise.b',
        ),
        (Inside, r'its steps runs by \S+FlippingList.forward, which running its layers one by one'),
    ],
)
def test_what_a_family_stands_in_for_is_the_very_function(chain, backbone, reason):
    assert len(unroll(Named()).segments) == 3
    message = rf'backbone {backbone.__name__} cannot be cut: {reason}'
    with pytest.raises(LocalLearningError, match=message) as info:
        unroll(backbone())
    assert '\n' not in str(info.value) and '@fba_mm.backbone_family' in str(info.value)
    backbone_family(backbone, replaces=('begin',), steps_into=(FlippingList,))(segments_of_chain)
    assert len(unroll(backbone()).segments) == 3


def test_a_method_of_one_object_counts(chain):
    backbone = Chain()
    backbone.forward = lambda x: (x, x)
    with pytest.raises(LocalLearningError, match='backbone Chain cannot be cut'):
        unroll(backbone)


def resnet_of(package):
    from mmdet.models.backbones import resnet as mmdet
    from mmpretrain.models.backbones import resnet as mmpretrain

    return dict(mmdet=mmdet, mmpretrain=mmpretrain)[package].ResNet


@pytest.mark.parametrize('package', ['mmdet', 'mmpretrain'])
def test_a_fork_under_a_known_name(package):
    """It was cut as its parent, and its gates were never trained."""
    parent = resnet_of(package)

    class ResNet(parent):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.gate = nn.Conv2d(64, 64, 1)

        def forward(self, x):
            return tuple(x * torch.sigmoid(self.gate(x)) for x in super().forward(x))

    settings = dict(depth=18, base_channels=8, stem_channels=8, out_indices=(3,))
    assert len(unroll(parent(**settings)).segments) == 9
    with pytest.raises(
        LocalLearningError, match=r'ResNet cannot be cut: it runs by \S+test_family\.'
    ):
        unroll(ResNet(**settings))


def test_a_function_put_in_place_of_a_known_one(monkeypatch):
    parent = resnet_of('mmdet')
    backbone = parent(depth=18, base_channels=8, stem_channels=8)
    stock = parent.forward
    monkeypatch.setattr(parent, 'forward', lambda self, x: stock(self, -x))
    with pytest.raises(
        LocalLearningError,
        match='ResNet cannot be cut: it runs by '
        r'\S+test_family\S*<lambda>',
    ):
        unroll(backbone)


class DoublingLayer(Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_stage_that_does_more_than_its_blocks():

    class WithDoubling(resnet_of('mmdet')):
        def make_res_layer(self, **kwargs):
            return DoublingLayer(*super().make_res_layer(**kwargs))

    with pytest.raises(LocalLearningError, match=r'its layer1 runs by \S+DoublingLayer.forward'):
        unroll(WithDoubling(depth=18, base_channels=8, stem_channels=8))


class Forked(BaseModule):
    """Registered as a user does it, with a segment that forgets a layer."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.conv2 = nn.Conv2d(4, 4, 3)
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        x = self.conv1(x)
        return (self.conv2(x) + self.scale * x[..., 1:-1, 1:-1],)


@pytest.mark.parametrize('forgets', [True, False])
def test_segments_are_compared_with_forward(forgets):
    """Even where the weights that tell them apart start at 0."""
    MODELS.register_module(module=Forked)

    @backbone_family(Forked)
    def unroll_forked(backbone):

        def last(backbone, x):
            y = backbone.conv2(x)
            return y if forgets else y + backbone.scale * x[..., 1:-1, 1:-1]

        return Unrolled(
            [
                Segment('conv1', lambda backbone, x: backbone.conv1(x), ('conv1',), stage=0),
                Segment('conv2', last, ('conv2',), stage=1, level=0, own_parameters=('scale',)),
            ],
            ReducedResidualBlock,
        )

    if not forgets:
        assert LocalBackbone(dict(type='Forked'), 2).num_modules == 2
        return
    with pytest.raises(
        LocalLearningError,
        match=r'Forked \(of \S+test_family\) cannot be cut: run '
        'segment by segment, it returns another map 0',
    ):
        LocalBackbone(dict(type='Forked'), 2)


def test_a_users_class_with_synchronized_norms():
    """They would wait for other processes, and refuse the CPU."""

    class Synchronized(resnet_of('mmdet')):
        pass

    settings = dict(depth=18, base_channels=8, stem_channels=8, norm_cfg=dict(type='SyncBN'))
    assert LocalBackbone(dict(type=Synchronized, **settings), 3).num_modules == 3


def test_names_alone_are_no_family():
    with pytest.raises(LocalLearningError, match=r"backbone_family\('ResNet'\): give the class"):
        backbone_family('ResNet')
    assert backbone_family('mmdet.models.backbones.resnet.ResNet')(unroll_resnet) is unroll_resnet


def test_unknown_families_are_told_the_known_ones():
    with pytest.raises(
        LocalLearningError, match=r'Chain cannot .*Chain.forward.*ResNet.*custom_imports'
    ):
        unroll(Chain())


def test_the_example_of_the_docs(tmp_path, monkeypatch):
    text = Path(__file__).parents[3].joinpath('docs/backbones.md').read_text()
    (tmp_path / 'my_backbone.py').write_text(re.search(r'```python\n(.*?)```', text, re.S)[1])
    monkeypatch.syspath_prepend(tmp_path)
    from mmdet.registry import MODELS as MMDET

    monkeypatch.setattr(MMDET, '_module_dict', dict(MMDET._module_dict))
    module = import_modules_from_strings('my_backbone')
    wrapped = LocalBackbone(
        dict(type='mmdet.GatedResNet', depth=18, base_channels=8, stem_channels=8), 'stages'
    )
    assert [wrapped.segments[range_[-1]].name for range_ in wrapped.module_segments] == [
        'gates.0',
        'gates.1',
        'gates.2',
        'gates.3',
    ]
    assert isinstance(wrapped.backbone, module.GatedResNet)
    del sys.modules['my_backbone']
