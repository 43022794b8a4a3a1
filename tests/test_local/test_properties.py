"""Properties of partition, cuts and bank, on what hypothesis makes up."""

from itertools import combinations

import pytest
import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from fba_mm import LocalBackbone
from fba_mm.local import FeatureBank, LocalStep
from fba_mm.local.auxiliary.base import Auxiliary
from fba_mm.local.partition import Footprint, Segment, cut, trace_footprints, unroll
from fba_mm.local.recompute import run_segments
from fba_mm.local.task_loss import FeatureStub

hypothesis = pytest.importorskip('hypothesis')
st = hypothesis.strategies

# The same examples in each run, on a machine of any speed.
few = hypothesis.settings(max_examples=8, deadline=None, derandomize=True, database=None)
many = hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@st.composite
def costs(draw):
    """Bytes of some segments, which of them are frozen, and their stages."""
    n = draw(st.integers(1, 9))
    made = draw(st.lists(st.integers(0, 10**6), min_size=n, max_size=n))
    frozen = draw(st.sets(st.integers(0, n - 1), max_size=n - 1))
    stages = sorted(draw(st.lists(st.integers(-1, 3), min_size=n, max_size=n)))
    footprints = [
        Footprint(str(i), channels=8, stride=4, saved_bytes=cost, frozen=i in frozen)
        for i, cost in enumerate(made)
    ]
    segments = [Segment(f's{i}', None, (), stage=stage) for i, stage in enumerate(stages)]
    return footprints, segments


@many
@hypothesis.given(costs(), st.data())
def test_no_other_cut_has_a_smaller_largest_module(case, data):
    footprints, segments = case
    n = len(segments)
    trained = sum(not f.frozen for f in footprints)
    num_modules = data.draw(st.integers(1, trained), label='num_modules')
    reserve = data.draw(st.sampled_from([0.0, 0.2, 1.5]), label='reserve')
    modules = cut(footprints, segments, num_modules, reserve)
    assert len(modules) == num_modules
    assert [i for module in modules for i in module] == list(range(n))
    assert all(any(not footprints[i].frozen for i in module) for module in modules)
    bytes_of = [f.saved_bytes for f in footprints]
    bytes_of[-1] += round(reserve * sum(bytes_of))

    def largest(bounds):
        return max(sum(bytes_of[a:b]) for a, b in zip(bounds, bounds[1:]))

    # Cuts lie behind blocks that are trained: what is frozen joins the next module.
    others = (
        (0, *inner, n)
        for inner in combinations(range(1, n), num_modules - 1)
        if not any(footprints[i - 1].frozen for i in inner)
        and any(not f.frozen for f in footprints[max(inner, default=0) :])
    )
    assert largest((*(m.start for m in modules), n)) == min(map(largest, others))


@many
@hypothesis.given(costs(), st.data())
def test_explicit_cuts_are_what_was_cut(case, data):
    """The cuts that a number, 'stages' or 'blocks' comes to, spelled out in either form."""
    footprints, segments = case
    trained = sum(not f.frozen for f in footprints)
    how = data.draw(
        st.one_of(st.integers(1, trained), st.sampled_from(['stages', 'blocks'])), label='how'
    )
    modules = cut(footprints, segments, how)
    assert cut(footprints, segments, [len(module) for module in modules]) == modules
    assert cut(footprints, segments, [segments[m[-1]].name for m in modules]) == modules
    if len(modules) > 1:  # The end of the network needs no name.
        assert cut(footprints, segments, [segments[m[-1]].name for m in modules[:-1]]) == modules


@st.composite
def resnets(draw):
    """Configs of small ResNets, dilated, frozen, with a deep stem and other levels."""
    depth = draw(st.sampled_from([18, 50]))
    stages = draw(st.integers(1, 4))
    dilated = draw(st.integers(0, stages))
    return dict(
        type='mmdet.ResNet',
        depth=depth,
        base_channels=4,
        stem_channels=4,
        num_stages=stages,
        strides=tuple(1 if i == 0 or i >= stages - dilated else 2 for i in range(stages)),
        dilations=tuple(2 if i and i >= stages - dilated else 1 for i in range(stages)),
        out_indices=tuple(
            sorted(draw(st.sets(st.integers(0, stages - 1), min_size=1, max_size=stages)))
        ),
        deep_stem=draw(st.booleans()),
        avg_down=draw(st.booleans()),
        frozen_stages=draw(st.integers(-1, stages - 1)),
        norm_eval=draw(st.booleans()),
        zero_init_residual=False,
    )


@few
@hypothesis.given(resnets(), st.data())
def test_modules_in_order_are_the_forward_and_have_each_parameter_once(cfg, data):
    backbone = MODELS.build(cfg)
    unrolled = unroll(backbone)
    footprints = trace_footprints(backbone, unrolled.segments)
    trained = sum(not f.frozen for f in footprints)
    num_modules = data.draw(st.integers(1, trained), label='num_modules')
    modules = cut(footprints, unrolled.segments, num_modules)
    backbone.train()  # Stages are frozen here.
    listed = [
        id(p)
        for module in modules
        for i in module
        for p in unrolled.segments[i].parameters(backbone)
    ]
    assert sorted(listed) == sorted(id(p) for p in backbone.parameters())
    backbone.eval()
    with torch.no_grad():
        expected, levels, x = backbone(IMAGES), {}, IMAGES
        for module in modules:
            x, own, _ = run_segments(
                backbone, unrolled.segments[module.start : module.stop], x, {'images': IMAGES}
            )
            levels.update(own)
    assert sorted(levels) == list(range(len(expected)))
    assert all(torch.equal(levels[i], one) for i, one in enumerate(expected))


class Witness(Auxiliary):
    """Notes what the bank holds when its module is trained."""

    def __init__(self, cut_point, notes):
        super().__init__(cut_point)
        self.notes = notes

    def loss(self, x: Tensor, levels, step):
        held = {level: step.bank.get(level) for level in range(8)}
        self.notes.append(
            (
                self.cut_point.module,
                {level: one for level, one in held.items() if one is not None},
                set(levels),
            )
        )
        return dict(loss=x.mean())


@few
@hypothesis.given(
    st.sampled_from(FeatureBank.scopes), st.integers(2, 6), st.sets(st.integers(0, 3), min_size=1)
)
def test_the_bank_holds_aliases_of_what_its_scope_says(scope, num_modules, out_indices):
    notes, made = [], {}
    backbone = MODELS.build(
        dict(
            type='mmdet.ResNet',
            depth=18,
            base_channels=4,
            stem_channels=4,
            out_indices=tuple(sorted(out_indices)),
        )
    )
    local = LocalBackbone(backbone, num_modules, dict(type=Witness, notes=notes)).train()
    ends = {s.name: s.level for s in local.segments if s.level is not None}
    for name, level in ends.items():
        backbone.get_submodule(name).register_forward_hook(
            lambda module, args, output, level=level: made.setdefault(level, []).append(
                output.untyped_storage()._cdata
            )
        )
    bank = FeatureBank(scope)
    local.step = LocalStep(
        nn.Identity(), FeatureStub(), IMAGES, [], bank, lambda index, losses: None
    )
    local(IMAGES)
    assert [module for module, _, _ in notes] == list(range(num_modules - 1))
    everything, seen = set(range(len(ends))), set()
    for _, held, own in notes:
        expected = dict(off=set(), past=seen, all=everything)[scope]
        assert set(held) == expected
        for level, one in held.items():
            assert not one.requires_grad
            assert one.untyped_storage()._cdata in made[level]
        seen = seen | own
    bank.clear()
    assert all(bank.get(level) is None for level in everything) and bank.pooled() == []
