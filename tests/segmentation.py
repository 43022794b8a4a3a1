"""Small segmentors of mmseg and batches that the tests share."""

from typing import Optional

import torch
from mmengine.config import Config

NUM_CLASSES = 4
LIGHT = dict(
    type='SLM',
    channels=16,
    head=dict(type='LightFCN', num_classes=NUM_CLASSES, channels=16, dropout_ratio=0.0),
)


def dilated_resnet(depth: int = 18, **kwargs) -> dict:
    """A narrow ResNetV1c whose last two stages are dilated instead of strided."""
    return dict(
        dict(
            type='mmseg.ResNetV1c',
            depth=depth,
            base_channels=8,
            stem_channels=8,
            num_stages=4,
            out_indices=(0, 1, 2, 3),
            dilations=(1, 1, 2, 4),
            strides=(1, 2, 1, 1),
            norm_cfg=dict(type='BN', requires_grad=True),
            norm_eval=False,
            contract_dilation=True,
            zero_init_residual=False,
        ),
        **kwargs,
    )


def swin(**kwargs) -> dict:
    """A narrow Swin Transformer, without the chance of dropping paths."""
    return dict(
        dict(
            type='mmseg.SwinTransformer',
            embed_dims=8,
            depths=(2, 2, 2, 2),
            num_heads=(1, 2, 4, 4),
            window_size=4,
            drop_path_rate=0.0,
        ),
        **kwargs,
    )


def head(kind: str, width, index, **kwargs) -> dict:
    """A narrow decode head without the chance of dropout."""
    return dict(
        type=f'mmseg.{kind}',
        in_channels=width,
        in_index=index,
        channels=16,
        dropout_ratio=0.0,
        num_classes=NUM_CLASSES,
        norm_cfg=dict(type='BN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(type='mmseg.CrossEntropyLoss'),
        **kwargs,
    )


def segmentor(
    num_modules=4,
    kind: str = 'FCNHead',
    backbone: Optional[dict] = None,
    auxiliary: Optional[dict] = None,
    **kwargs,
) -> dict:
    """A model with a decode and an auxiliary head; ``num_modules=None`` leaves it unwrapped."""
    backbone = backbone or dilated_resnet()
    widths = [8, 16, 32, 64]
    if backbone.get('depth', 18) >= 50:
        widths = [4 * width for width in widths]
    if num_modules is not None:
        backbone = dict(
            type='LocalBackbone',
            backbone=backbone,
            num_modules=num_modules,
            auxiliary=auxiliary or dict(type='SLM'),
        )
    decode = head(kind, widths, [0, 1, 2, 3]) if kind == 'UPerHead' else head(kind, widths[3], 3)
    return dict(
        type='mmseg.EncoderDecoder',
        data_preprocessor=dict(
            type='mmseg.SegDataPreProcessor', mean=[127.5] * 3, std=[64.0] * 3, size_divisor=8
        ),
        backbone=backbone,
        decode_head=decode,
        auxiliary_head=head('FCNHead', widths[2], 2, num_convs=1, concat_input=False),
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
        **kwargs,
    )


def training(**kwargs) -> Config:
    """A stock config around the model."""
    return Config(
        dict(
            default_scope='mmseg',
            model=segmentor(None, **kwargs),
            optim_wrapper=dict(
                type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9)
            ),
        )
    )


def labelled_batch(size=(64, 64), images: int = 2, seed: int = 0) -> dict:
    """Images of noise with a class for each pixel, a corner of which is ignored."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    generator = torch.Generator().manual_seed(seed)
    inputs, samples = [], []
    for _ in range(images):
        inputs.append(torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8))
        labels = torch.randint(0, NUM_CLASSES, (1, *size), generator=generator)
        labels[:, :8, :8] = 255
        sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size))
        sample.gt_sem_seg = PixelData(data=labels)
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)
