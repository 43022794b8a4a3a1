"""mmagic's SwinIRNet in segments: images are padded to whole windows, for each of its tasks."""

import pytest
import torch

from fba_mm.local.partition import unroll

from ...super_resolution import swinir
from . import family_checks

TASKS = [
    swinir(2),
    swinir(3),
    swinir(4, upsampler='pixelshuffledirect'),
    swinir(4, upsampler='nearest+conv'),
    swinir(2, upsampler='nearest+conv'),
    swinir(1, upsampler='', img_range=255.0),
    swinir(1, upsampler='', in_chans=1),
]


@pytest.mark.parametrize(
    'cfg',
    [
        *TASKS,
        swinir(resi_connection='3conv', patch_norm=False),
        swinir(use_checkpoint=True),
        swinir(drop_path_rate=0.3, drop_rate=0.1, num_blocks=1),
    ],
)
def test_segments_are_the_network(cfg):
    # 10 and 14 pixels are no whole windows of 4.
    family_checks.check_forward(cfg, (cfg.get('in_chans', 3), 10, 14))


def test_segments_are_the_network_with_absolute_positions():
    family_checks.check_forward(swinir(ape=True), (3, 12, 12))


@pytest.mark.parametrize('cfg', [*TASKS, swinir(ape=True), swinir(patch_norm=False)])
def test_every_parameter_belongs_to_one_segment(cfg):
    family_checks.check_parameters(cfg)


def test_stages_channels_and_strides():
    assert family_checks.stages_of(swinir(4, num_blocks=2)) == [
        (-1, 8, 1),
        (0, 8, 1),
        (0, 8, 1),
        (1, 3, 0.25),
    ]


@pytest.mark.parametrize('cfg', TASKS)
def test_reduced_parts(cfg):
    family_checks.check_reduced_reconstruction(cfg, (10, 14), adds_images=not cfg['upsampler'])


def test_the_reduced_block_attends_as_the_network_does():
    backbone = family_checks.built(swinir(qkv_bias=False))
    block = unroll(backbone).reduced_block(8, 8, 1).block
    own = backbone.layers[0].residual_group.blocks[0]
    assert {n: p.shape for n, p in block.named_parameters()} == {
        n: p.shape for n, p in own.named_parameters()
    }
    x = torch.rand(1, 144, 8)
    block.load_state_dict(own.state_dict())
    assert torch.equal(block(x, (12, 12)), own(x, (12, 12)))
