"""Small super-resolution models of mmagic and batches that the tests share."""

from typing import Union

import torch


def edsr(scale: int = 2, num_blocks: int = 4, channels: int = 8, **kwargs) -> dict:
    """A narrow EDSRNet."""
    return dict(
        type='mmagic.EDSRNet',
        in_channels=3,
        out_channels=3,
        mid_channels=channels,
        num_blocks=num_blocks,
        upscale_factor=scale,
        **kwargs,
    )


def msrresnet(scale: int = 2, num_blocks: int = 4, channels: int = 8, **kwargs) -> dict:
    """A narrow MSRResNet."""
    return dict(
        type='mmagic.MSRResNet',
        in_channels=3,
        out_channels=3,
        mid_channels=channels,
        num_blocks=num_blocks,
        upscale_factor=scale,
        **kwargs,
    )


def rrdbnet(scale: int = 2, num_blocks: int = 4, channels: int = 8, **kwargs) -> dict:
    """A narrow RRDBNet."""
    return dict(
        type='mmagic.RRDBNet',
        in_channels=3,
        out_channels=3,
        mid_channels=channels,
        num_blocks=num_blocks,
        growth_channels=channels // 2,
        upscale_factor=scale,
        **kwargs,
    )


def rdn(scale: int = 2, num_blocks: int = 4, channels: int = 8, **kwargs) -> dict:
    """A narrow RDNNet."""
    return dict(
        type='mmagic.RDNNet',
        in_channels=3,
        out_channels=3,
        mid_channels=channels,
        num_blocks=num_blocks,
        num_layers=3,
        channel_growth=channels,
        upscale_factor=scale,
        **kwargs,
    )


def swinir(scale: int = 2, num_blocks: int = 4, channels: int = 8, **kwargs) -> dict:
    """A narrow SwinIRNet, without the chance of dropping paths."""
    return dict(
        dict(
            type='mmagic.SwinIRNet',
            upscale=scale,
            img_size=12,
            window_size=4,
            depths=[2] * num_blocks,
            embed_dim=channels,
            num_heads=[2] * num_blocks,
            mlp_ratio=2,
            drop_path_rate=0.0,
            upsampler='pixelshuffle',
        ),
        **kwargs,
    )


def editor(
    num_modules: Union[None, int, str] = 4, auxiliary: dict = None, network=edsr, **kwargs
) -> dict:
    """A model around a network; ``num_modules=None`` leaves its generator unwrapped."""
    generator = network(**kwargs)
    if num_modules is not None:
        generator = dict(
            type='LocalBackbone',
            backbone=generator,
            num_modules=num_modules,
            auxiliary=auxiliary or dict(),
        )
    return dict(
        type='mmagic.BaseEditModel',
        data_preprocessor=dict(type='mmagic.DataPreprocessor', mean=[0.0] * 3, std=[255.0] * 3),
        generator=generator,
        pixel_loss=dict(type='mmagic.L1Loss'),
    )


def patches(size: int = 12, images: int = 2, scale: int = 2, seed: int = 0) -> dict:
    """Patches of noise and their targets, as mmagic's dataloader gives them."""
    from mmagic.structures import DataSample

    generator = torch.Generator().manual_seed(seed)

    def noise(side: int) -> torch.Tensor:
        return torch.randint(0, 256, (3, side, side), generator=generator, dtype=torch.uint8)

    return dict(
        inputs=[noise(size) for _ in range(images)],
        data_samples=[DataSample(gt_img=noise(size * scale)) for _ in range(images)],
    )
