"""mmdet's Pyramid Vision Transformers, and mmseg's MixVisionTransformer."""

import pytest

from fba_mm.local.partition import unroll

from ...conftest import batch, retinanet
from .family_checks import (
    built,
    check_checkpoint,
    check_forward,
    check_isolation,
    check_parameters,
    stages_of,
)

SMALL = dict(embed_dims=8, num_layers=[2, 1, 2, 1], drop_path_rate=0.3)
V1 = dict(type='mmdet.PyramidVisionTransformer', pretrain_img_size=64, **SMALL)
V2 = dict(type='mmdet.PyramidVisionTransformerV2', **SMALL)
MIX = dict(type='mmseg.MixVisionTransformer', num_heads=[1, 2, 5, 8], **SMALL)
BACKBONES = {
    'v1': V1,
    'v2': V2,
    'v2, two levels': dict(V2, out_indices=(1, 3)),
    'v1 without position': dict(V1, use_abs_pos_embed=False),
    'mix': MIX,
    'mix, two levels': dict(MIX, out_indices=(0, 2)),
}


@pytest.mark.parametrize('cfg', BACKBONES.values(), ids=BACKBONES)
def test_segments_one_by_one_are_the_forward(cfg):
    check_forward(cfg, (3, 64, 96))
    check_parameters(cfg)


def test_one_segment_per_layer():
    expected = [(0, 8, 4), (0, 8, 4), (1, 16, 8), (2, 40, 16), (2, 40, 16), (3, 64, 32)]
    assert stages_of(V1) == expected == stages_of(V2) == stages_of(MIX)
    # With the embedding of positions that comes before it.
    assert unroll(built(V1)).segments[0].submodules[:3] == (
        'layers.0.0',
        'layers.0.1.0',
        'layers.0.1.1',
    )


def detector(backbone: dict, num_modules) -> dict:
    """A RetinaNet on it: mmpretrain's necks don't take the lists that it returns."""
    if num_modules is not None:
        backbone = dict(type='LocalBackbone', backbone=backbone, num_modules=num_modules)
    model = dict(retinanet(num_modules=None), backbone=backbone)
    model['neck']['in_channels'] = [8, 16, 40, 64]
    return model


@pytest.mark.slow
@pytest.mark.parametrize('cfg', [V1, V2, MIX], ids=['v1', 'v2', 'mix'])
def test_isolation_and_checkpoints(cfg):
    cfg, data = dict(cfg, drop_path_rate=0.0), batch()
    check_isolation(detector(cfg, 'blocks'), data)
    check_checkpoint(detector(cfg, 4), detector(cfg, None), data)
