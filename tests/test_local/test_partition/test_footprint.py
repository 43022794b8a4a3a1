"""What is traced without computing, against what autograd keeps when it computes."""

import sys
import types
from functools import partial

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from fba_mm import LocalBackbone, LocalLearningError
from fba_mm.local.partition import Segment, run_submodule, trace_footprints, unroll

from ...conftest import retinanet

SHAPE = (3, 96, 64)
BACKBONES = dict(
    plain=dict(depth=18),
    bottleneck=dict(depth=50),
    group_norm=dict(depth=18, norm='GN'),
    frozen=dict(depth=18, frozen_stages=2),
    fixed_norms=dict(depth=18, norm_eval=True),
    checkpointed=dict(depth=18, with_cp=True),
    deformable=dict(
        depth=50,
        dcn=dict(type='DCNv2', deform_groups=1, fallback_on_stride=False),
        stage_with_dcn=(False, True, False, False),
    ),
    deep_stem=dict(depth=18, type='mmdet.ResNetV1d'),
)


def built(**settings):
    return MODELS.build(retinanet(num_modules=None, **settings)['backbone'])


def kept_bytes(backbone, segments, images):
    """Bytes of the tensors that autograd has after each segment and had not before."""
    parameters = {
        p.untyped_storage().data_ptr() for p in (*backbone.parameters(), *backbone.buffers())
    }
    x, sizes, seen, alive = images, [], {images.untyped_storage().data_ptr()}, []
    for segment in segments:
        kept = {}

        def pack(tensor, kept=kept, before=parameters | seen):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in before:
                kept[storage.data_ptr()] = storage.nbytes()
                alive.append(tensor)  # So that no address is given away twice.
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            x = segment.run(backbone, x)
        sizes.append(sum(kept.values()))
        seen |= set(kept)
        alive.append(x)
    return sizes


def test_compiled_operators_do_not_run(monkeypatch):
    """They read memory, and there is none."""

    def compiled(*args, **kwargs):
        raise RuntimeError('implementation for device meta:0 not found')

    backbone = built(**BACKBONES['deformable'])
    extension = types.ModuleType('mmcv._ext')
    extension.__getattr__ = lambda name: compiled
    monkeypatch.setitem(sys.modules, 'mmcv._ext', extension)
    for name, module in list(sys.modules.items()):
        if name.startswith('mmcv.ops.') and hasattr(module, 'ext_module'):
            monkeypatch.setattr(module, 'ext_module', extension)
    with pytest.raises(RuntimeError, match='not found'):
        backbone(torch.rand(1, *SHAPE))
    assert len(trace_footprints(backbone, unroll(backbone).segments, SHAPE)) == 17


@pytest.mark.parametrize('name', sorted(BACKBONES))
def test_traced_bytes_are_those_that_autograd_keeps(name):
    backbone = built(**BACKBONES[name])
    backbone.train()
    segments = unroll(backbone).segments
    traced = trace_footprints(backbone, segments, SHAPE)
    expected = kept_bytes(backbone, segments, torch.rand(2, *SHAPE))
    # The image itself is kept for the first convolution's weight, if that is trained.
    image = 0 if name == 'frozen' else 4 * 3 * 96 * 64
    assert [f.saved_bytes for f in traced] == [
        pytest.approx(size / 2 + (image if i == 0 else 0), rel=0.02, abs=2048)
        for i, size in enumerate(expected)
    ]
    assert sum(expected) > 0


@pytest.mark.parametrize('name', sorted(BACKBONES))
def test_shapes_names_and_what_is_frozen(name):
    backbone = built(**BACKBONES[name])
    segments = unroll(backbone).segments
    x = torch.rand(2, *SHAPE)
    for segment, footprint in zip(segments, trace_footprints(backbone, segments, SHAPE)):
        x = segment.run(backbone, x)
        assert footprint.name == segment.name
        assert (footprint.channels, footprint.stride) == (x.shape[1], 96 / x.shape[2])
        assert footprint.frozen == (name == 'frozen' and segment.stage < 2)


def test_the_backbone_is_left_as_it_was():
    for training in (True, False):
        backbone = built()
        backbone.train(training)
        before = {name: value.clone() for name, value in backbone.state_dict().items()}
        state = torch.get_rng_state()
        trace_footprints(backbone, unroll(backbone).segments, SHAPE)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(m.training == training for m in backbone.modules())
        assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
        assert all(p.device.type == 'cpu' and p.grad is None for p in backbone.parameters())


def test_what_costs_nothing_in_evaluation_and_checkpoints():
    """Frozen layers and checkpointed blocks keep less; that is what the partition goes by."""
    plain, frozen, checkpointed = (
        [f.saved_bytes for f in trace_footprints(b, unroll(b).segments, SHAPE)]
        for b in (built(), built(frozen_stages=2), built(with_cp=True))
    )
    assert frozen[:5] == [0] * 5 and all(size > 0 for size in frozen[5:])
    assert all(a < b / 2 for a, b in zip(checkpointed[1:], plain[1:]))


def test_bytes_are_those_of_one_image():
    backbone = built(depth=50)
    segments = unroll(backbone).segments
    small, large = (
        sum(f.saved_bytes for f in trace_footprints(backbone, segments, (3, s, s)))
        for s in (128, 256)
    )
    assert large == pytest.approx(4 * small, rel=0.02)


def test_a_backbone_that_does_not_run():
    backbone = built()
    segments = [Segment('layer4', lambda b, x: run_submodule(b, x, 'layer4'), ('layer4',), 3)]
    with pytest.raises(LocalLearningError, match='ResNet does not run on images of shape') as info:
        trace_footprints(backbone, segments, (3, 256, 256))
    assert '\n' not in str(info.value)
    assert backbone.training


@pytest.mark.parametrize(
    'cfg, channels',
    [
        (dict(type='mmdet.ResNet', in_channels=1), 1),
        (dict(type='mmpretrain.ResNet', in_channels=4), 4),
        (dict(type='mmseg.ResNetV1c', in_channels=2), 2),
        # Its stem gives the first convolution four times the channels of the images.
        (dict(type='mmdet.CSPDarknet', deepen_factor=0.33, widen_factor=0.125), 3),
    ],
)
def test_images_have_the_channels_that_the_backbone_takes(cfg, channels):
    if 'ResNet' in cfg['type']:
        cfg = dict(cfg, depth=18, base_channels=8, stem_channels=8)
    wrapped = LocalBackbone(cfg, 2).eval()
    with torch.no_grad():
        assert wrapped(torch.rand(1, channels, 64, 64))[-1].shape[2:] == (2, 2)


def test_outputs_larger_than_the_image_have_a_fraction_of_a_stride():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Upsample(scale_factor=8))
    segments = [Segment(name, partial(run_submodule, path=name), (name,), stage=0) for name in '01']
    assert [f.stride for f in trace_footprints(net, segments)] == [2, 0.25]
