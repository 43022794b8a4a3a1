"""What holds for the segments of every family of backbones, and for its training."""

import copy
from typing import Optional

import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from torch import nn

from fba_mm.local.partition import (
    IMAGES,
    cut,
    cut_points,
    levels_of,
    trace_footprints,
    unroll,
)
from fba_mm.local.partition.reconstruction import FIRST_MAP
from fba_mm.local.recompute import run_recomputing, run_segments

from ...conftest import build
from ...local_training import Trainer

NUM_CLASSES = 5


def built(cfg: dict) -> nn.Module:
    """A backbone whose norms, biases and scales all matter."""
    torch.manual_seed(0)
    backbone = MODELS.build(ConfigDict(copy.deepcopy(cfg)))
    for parameter in backbone.parameters():
        if parameter.dim() < 2 or parameter.size(0) == 1:
            nn.init.normal_(parameter, 0.5, 0.2)
    return backbone


def check_forward(cfg: dict, shape: tuple, resting: tuple = ()) -> None:
    """The segments, one by one, are the backbone's own forward, bit by bit, in both modes.

    In training each is recomputed: gradients are the same bits, too, and running statistics advance
    once.

    Args:
        cfg: A backbone.
        shape: Of an image.
        resting: Beginnings of the names of layers that no segment runs.
    """
    backbone = built(cfg)
    twin = copy.deepcopy(backbone)
    segments = unroll(backbone).segments
    x = torch.rand(2, *shape)
    for mode in (True, False):
        twin.train(mode)
        backbone.train(mode)
        torch.manual_seed(1)
        expected = levels_of(twin(x))
        torch.manual_seed(1)
        run = run_recomputing if mode else run_segments
        levels, kept, out = {}, {IMAGES: x}, x
        for segment in segments:
            out, level, own = run(backbone, [segment], out, kept)
            levels.update(level)
            kept.update(own)
        assert sorted(levels) == list(range(len(expected)))
        for i, level in enumerate(expected):
            assert level.shape == levels[i].shape and torch.equal(level, levels[i])
        if mode:
            for maps in (expected, levels.values()):
                sum((level * level.detach().cos()).sum() for level in maps).backward()
    assert all(
        p.grad is q.grad or torch.equal(p.grad, q.grad)
        for p, q in zip(twin.parameters(), backbone.parameters())
    )
    assert all(
        torch.equal(v, backbone.state_dict()[k])
        for k, v in twin.state_dict().items()
        if not k.startswith(resting or ('-',))
    )


def check_parameters(cfg: dict) -> None:
    """Every parameter belongs to one segment."""
    backbone = built(cfg)
    listed = [id(p) for s in unroll(backbone).segments for p in s.parameters(backbone)]
    assert sorted(listed) == sorted(id(p) for p in backbone.parameters())


def stages_of(cfg: dict) -> list:
    """(stage, channels, stride) of each segment, as traced."""
    backbone = built(cfg)
    unrolled = unroll(backbone)
    footprints = trace_footprints(
        backbone, unrolled.segments, unrolled.input_shape, unrolled.as_map
    )
    assert all(f.saved_bytes > 0 for f in footprints)
    return [(s.stage, f.channels, f.stride) for s, f in zip(unrolled.segments, footprints)]


def check_reduced_reconstruction(cfg: dict, size: tuple, adds_images: bool = False) -> None:
    """A light head makes images of the network's size; what it adds nothing to is as told.

    Args:
        cfg: A network that makes images.
        size: (height, width) of the images.
        adds_images: Whether the network itself adds the enlarged images.
    """
    backbone = built(cfg)
    unrolled = unroll(backbone)
    footprints = trace_footprints(backbone, unrolled.segments, unrolled.input_shape)
    point = cut_points(backbone, unrolled, footprints, cut(footprints, unrolled.segments, 2))[0]
    images = torch.rand(2, unrolled.input_shape[0], *size)
    kept, x = {IMAGES: images}, images
    for segment in unrolled.segments[:-1]:
        x = segment.advance(backbone, x, kept)
    with torch.no_grad():
        expected = backbone(images)
    block = point.reduced_block(point.channels, point.channels, 1)
    assert block(x).shape == x.shape
    own = 'bilinear' if adds_images else None
    # What is asked for, and the images that are added; nothing asked, a head adds some in any case.
    for residual, mode in (('network', own), (None, own or 'bicubic'), ('bicubic', 'bicubic')):
        head = point.reduced_head(4, residual)
        out = head(block(x), kept[FIRST_MAP], images)
        assert out.shape == expected.shape
        assert not torch.equal(out, head(block(x), None, images))
        for parameter in head.conv_last.parameters():
            nn.init.zeros_(parameter)
        plain = head(x, None, images)
        if mode is None:
            assert torch.allclose(plain, head.mean.expand_as(plain))
        else:
            enlarged = nn.functional.interpolate(
                images, scale_factor=expected.size(2) // size[0], mode=mode, align_corners=False
            )
            assert torch.allclose(plain, enlarged)


def classifier(
    backbone: dict,
    num_modules,
    channels: int,
    neck: bool = False,
    head: Optional[dict] = None,
    auxiliary: Optional[dict] = None,
    **kwargs,
) -> dict:
    """A small classifier; ``num_modules=None`` leaves its backbone unwrapped."""
    if num_modules is not None:
        backbone = dict(
            type='LocalBackbone',
            backbone=backbone,
            num_modules=num_modules,
            auxiliary=auxiliary or dict(type='SLM'),
        )
    return dict(
        type='mmpretrain.ImageClassifier',
        data_preprocessor=dict(
            type='mmpretrain.ClsDataPreprocessor',
            num_classes=NUM_CLASSES,
            mean=[127.5] * 3,
            std=[64.0] * 3,
        ),
        backbone=backbone,
        neck=dict(type='mmpretrain.GlobalAveragePooling') if neck else None,
        head=head
        or dict(
            type='mmpretrain.LinearClsHead',
            num_classes=NUM_CLASSES,
            in_channels=channels,
            init_cfg=dict(type='Normal', layer='Linear', std=0.1),
            loss=dict(type='mmpretrain.CrossEntropyLoss'),
        ),
        **kwargs,
    )


def class_batch(size=64, images: int = 4) -> dict:
    """Images of noise with labels."""
    from mmpretrain.structures import DataSample

    height, width = size if isinstance(size, tuple) else (size, size)
    generator = torch.Generator().manual_seed(0)
    return dict(
        inputs=[
            torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
            for _ in range(images)
        ],
        data_samples=[DataSample().set_gt_label(i % NUM_CLASSES) for i in range(images)],
    )


def check_isolation(cfg: dict, data: dict, unused: tuple = ()) -> nn.Module:
    """A module's loss trains its own layers, its auxiliary network and the shared head alone.

    Args:
        cfg: A model with a LocalBackbone.
        data: A batch.
        unused: Beginnings of the names of parameters that have no part in the loss.

    Returns:
        The model, after one step of training.
    """
    model = build(cfg)
    trainer = Trainer(model)
    local = model.backbone
    assert local.num_modules > 1

    def gradients() -> dict:
        torch.manual_seed(3)
        trainer.runner.iter = 0
        return trainer.gradients(data)

    before = gradients()
    trained = {
        n
        for n, p in model.named_parameters()
        if p.requires_grad and not n.startswith(tuple(unused) or ('-',))
    }
    assert trained == set(before)
    assert all(torch.isfinite(g).all() for g in before.values())
    for k in range(local.num_modules - 1):
        local.auxiliary[k].loss_weight = 4.0  # A power of two: nothing is rounded otherwise.
        after = gradients()
        local.auxiliary[k].loss_weight = 1.0
        own = {id(p) for p in local.local_parameters(k)}
        assert any(id(p) in own for p in local.backbone.parameters())
        for name, parameter in local.named_parameters(prefix='backbone'):
            if name not in before:
                continue
            if id(parameter) in own:
                assert torch.equal(after[name], 4 * before[name]), (k, name)
            else:
                assert torch.equal(after[name], before[name]), (k, name)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    losses = trainer.step(data)
    assert all(map(torch.isfinite, map(torch.as_tensor, losses.values())))
    assert any(not p.equal(weights[n]) for n, p in local.named_parameters(prefix='backbone'))
    return model


def check_checkpoint(cfg: dict, stock_cfg: dict, data: dict) -> None:
    """A stock checkpoint loads, and the local model evaluates as the stock one does."""
    stock, model = build(stock_cfg), build(cfg)
    for parameter in stock.parameters():
        nn.init.normal_(parameter, 0, 0.1)
    model.load_state_dict(stock.state_dict(), strict=True)
    stock.eval()
    model.eval()
    prepared = stock.data_preprocessor(data)
    expected = stock(prepared['inputs'], mode='tensor')
    found = copy.deepcopy(model)(prepared['inputs'], mode='tensor')
    expected, found = _tensors(expected), _tensors(found)
    assert len(expected) == len(found) and all(map(torch.equal, expected, found))


def _tensors(output) -> list:
    """The tensors of a model's output: classifiers give one, detectors tuples of lists."""
    if isinstance(output, torch.Tensor):
        return [output]
    return [tensor for part in output for tensor in _tensors(part)]
