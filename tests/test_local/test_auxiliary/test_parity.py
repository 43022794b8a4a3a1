"""Every method beside its authors' code: the numbers that were read from running it."""

from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from fba_mm.config import load_config

from .places import step_with

CIFAR10 = Path(__file__).resolve().parents[3] / 'configs/classification/cifar10'


def auxiliaries(method):
    """The auxiliary networks of a ResNet-32 as the config of CIFAR-10 has them."""
    cfg = load_config(str(CIFAR10 / f'resnet32_{method}.py'))
    return MODELS.build(cfg.model.backbone)


def trained(module):
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    'method, modules, parameters',
    [
        ('greedy', 16, 5270),
        ('predsim', 16, 284310),
        ('dgl', 16, 838294),
        ('infopro', 16, 449115),
        ('auglocal_d1', 15, 806412),
        ('auglocal', 14, 1341058),
        ('auglocal_d3', 13, 1511608),
        ('auglocal_d5', 11, 1684388),
        ('auglocal_d9', 7, 1562108),
    ],
)
def test_modules_and_parameters(method, modules, parameters):
    backbone = auxiliaries(method)
    assert (backbone.num_modules, trained(backbone.auxiliary)) == (modules, parameters)


@pytest.mark.parametrize(
    'method, at_each_width',
    [
        ('greedy', (170, 330, 650)),
        ('predsim', (7434, 14346, 41994)),
        ('dgl', (9962, 37834, 147338)),
        ('dgl_three_layers', (14378, 54858, 214154)),
        ('infopro', (12277, 31989, 53877)),
    ],
)
def test_parameters_of_each_module(method, at_each_width):
    """Behind the stem and 5 blocks of 16 channels, 5 of 32, and 4 of 64."""
    narrow, middle, wide = at_each_width
    found = [trained(auxiliary) for auxiliary in auxiliaries(method).auxiliary]
    assert found == [narrow] * 6 + [middle] * 5 + [wide] * 4


@pytest.mark.parametrize(
    'method, modules',
    [
        ('greedy', 16),
        ('predsim', 16),
        ('dgl', 16),
        ('dgl_three_layers', 16),
        ('infopro', 16),
        ('infopro_k4', 4),
        ('auglocal_d1', 15),
        ('auglocal_d9', 7),
        ('man', 15),
        ('manpp', 16),
        ('manpp_infopro', 16),
    ],
)
def test_output_shapes(method, modules):
    backbone = auxiliaries(method).eval()
    step = step_with([3, 1], backbone=backbone.backbone, size=32)
    shapes = [tuple(logits.shape) for logits in backbone.local_logits(step.inputs, step)]
    assert shapes == [(2, 10)] * (modules - 1)


def test_vision_transformers_of_manpp():
    """ViT-Tiny: two copied layers, norm and classifier behind each of three, and a share."""
    cfg = load_config(str(CIFAR10.parent / 'imagenet/vit_tiny_manpp.py'))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        backbone = MODELS.build(cfg.model.backbone)
    assert [backbone.segments[module[-1]].name for module in backbone.module_segments] == [
        'layers.2',
        'layers.5',
        'layers.8',
        'layers.11',
    ]
    layer = 12 * 192**2 + 13 * 192
    expected = 2 * layer + 2 * 192 + 193 * 1000 + 1
    assert [trained(auxiliary) for auxiliary in backbone.auxiliary] == [expected] * 3
    assert 3 * expected == 3249339  # of the authors' own


@pytest.mark.parametrize(
    'method, modules, learned, hosts',
    [
        # The first block of each next module; MAN joins the stem with the first.
        ('man', 15, 461120, None),
        ('manpp', 16, 465792, 9568150),
        ('manpp_infopro', 16, 465792, None),
    ],
)
def test_learned_blocks_and_hosts_of_man(method, modules, learned, hosts):
    backbone = auxiliaries(method)
    assert backbone.num_modules == modules
    assert sum(trained(auxiliary.learned) for auxiliary in backbone.auxiliary) == learned
    if hosts is not None:
        assert sum(trained(auxiliary.host) for auxiliary in backbone.auxiliary) == hosts


def test_infopro_that_contrasts():
    cfg = load_config(str(CIFAR10 / 'resnet32_infopro.py'))
    cfg.model.backbone.auxiliary.contrastive = True
    assert trained(MODELS.build(cfg.model.backbone).auxiliary) == 677445


def test_cuts_of_infopro_in_four_modules():
    backbone = auxiliaries('infopro_k4')
    assert [backbone.segments[module[-1]].name for module in backbone.module_segments] == [
        'layer1.2',
        'layer2.1',
        'layer3.0',
        'layer3.4',
    ]


@pytest.mark.slow
@pytest.mark.parametrize('method', ['dgl', 'infopro', 'predsim', 'auglocal'])
def test_convolutions_start_as_the_authors_do(method):
    """Normal, with a variance of 2 / (k² · channels made)."""
    torch.manual_seed(0)
    auxiliary = auxiliaries(method).auxiliary
    auxiliary.init_weights()
    ratios = [
        conv.weight.std().item() / (2 / (conv.kernel_size[0] ** 2 * conv.out_channels)) ** 0.5
        for conv in auxiliary.modules()
        if isinstance(conv, torch.nn.Conv2d)
    ]
    assert len(ratios) >= 15 and sum(ratios) / len(ratios) == pytest.approx(1, abs=0.03)
