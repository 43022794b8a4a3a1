"""Families of backbones: a new one is one function, known by who defines forward."""
import pytest
import torch
from mmengine.registry import MODELS

from fba_mm import LocalBackbone, LocalLearningError
from fba_mm.local.partition import Segment, Unrolled, backbone_family, family, run_submodule, unroll
from fba_mm.local.partition.resnet import ReducedResidualBlock


class Chain(torch.nn.Module):
    """Three convolutions; two maps."""

    def __init__(self):
        super().__init__()
        self.steps = torch.nn.ModuleList(
            torch.nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in ((3, 4), (4, 8), (8, 16)))

    def forward(self, x):
        first = self.steps[1](self.steps[0](x))
        return first, self.steps[2](first)


@pytest.fixture
def chain():
    MODELS.register_module(module=Chain)

    def run(index):
        return lambda backbone, x: run_submodule(backbone, x, f'steps.{index}')

    @backbone_family('Chain')
    def unroll_chain(backbone):
        return Unrolled([Segment(f'step {i}', run(i), (f'steps.{i}', ), stage=i,
                                 level=None if i == 0 else i - 1) for i in range(3)],
                        ReducedResidualBlock)

    yield unroll_chain
    del family._FAMILIES['Chain']
    MODELS._module_dict.pop('Chain')


def test_a_new_family_is_one_function(chain):
    wrapped = LocalBackbone(dict(type='Chain'), 'blocks')
    assert wrapped.num_modules == 3
    assert [len(auxiliary.blocks) for auxiliary in wrapped.auxiliary] == [2, 1]
    x = torch.rand(1, 3, 16, 16)
    maps = wrapped.eval()(x)
    assert [m.shape for m in maps] == [(1, 8, 4, 4), (1, 16, 2, 2)]


def test_subclasses_follow_whose_forward_they_run(chain):

    class Named(Chain):
        pass

    class Otherwise(Chain):

        def forward(self, x):
            return super().forward(-x)

    assert len(unroll(Named()).segments) == 3
    with pytest.raises(LocalLearningError, match='backbone Otherwise cannot be cut: '):
        unroll(Otherwise())


def test_unknown_families_are_told_the_known_ones():

    class Parent(torch.nn.Module):

        def forward(self, x):
            return x

    class Child(Parent):
        pass

    with pytest.raises(LocalLearningError, match='ResNet.*@backbone_family') as info:
        unroll(Parent())
    assert '\n' not in str(info.value)
    with pytest.raises(LocalLearningError, match=r'backbone Child \(it runs as Parent does\)'):
        unroll(Child())
