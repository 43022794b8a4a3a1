"""Segments name modules and hold none."""

import copy
from functools import partial

import torch
from torch import nn

from fba_mm.local.partition import Segment, run_submodule


def test_a_segment_runs_whatever_backbone_it_is_given():
    backbone = nn.ModuleDict(dict(body=nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))))
    segment = Segment('body.1', partial(run_submodule, path='body.1'), ('body.1',), stage=0)
    twin = copy.deepcopy(backbone)
    nn.init.zeros_(twin['body'][1].weight)
    nn.init.ones_(twin['body'][1].bias)
    x = torch.rand(4, 2)
    assert torch.equal(segment.run(backbone, x), backbone['body'][1](x))
    assert torch.equal(copy.deepcopy(segment).run(twin, x), torch.ones(4, 3))
    assert segment.parameters(twin) == list(twin['body'][1].parameters())
    both = Segment('both', None, ('body.1', 'body.0'), stage=0)
    assert [p.shape for p in both.parameters(backbone)] == [(3, 2), (3,), (2, 2), (2,)]


def test_a_kept_output_reaches_a_later_segment():
    start = Segment('start', lambda backbone, x: x + 1, (), stage=-1, keeps='start')
    middle = Segment('middle', lambda backbone, x: 2 * x, (), stage=0)
    end = Segment('end', lambda backbone, x, first: x + first, (), stage=1, reads=('start',))
    kept = {}
    x = torch.ones(1)
    for segment in (start, middle, end):
        x = segment.advance(nn.Identity(), x, kept)
    assert x == 6 and list(kept) == ['start']
