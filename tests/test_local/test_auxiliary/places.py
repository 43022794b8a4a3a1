"""Places and batches for auxiliary networks that are tested without a backbone."""

from types import SimpleNamespace

import torch
from mmpretrain.structures import DataSample

from fba_mm.local import FeatureBank, LocalStep
from fba_mm.local.partition import CutPoint, LaterBlock, StageMap
from fba_mm.local.partition.resnet import ReducedResidualBlock

NUM_CLASSES = 5
# Stage, channels and stride of each block of a ResNet-32 for CIFAR, the stem first.
RESNET32 = [(-1, 16, 1)] + [(0, 16, 1)] * 5 + [(1, 32, 2)] * 5 + [(2, 64, 4)] * 5


def place(index: int = 3, **changes) -> CutPoint:
    """The end of one block of a ResNet-32 that is cut behind each."""
    stage, channels, stride = RESNET32[index]
    blocks = [LaterBlock(f'block{i}', *block, path=f'block{i}') for i, block in enumerate(RESNET32)]
    return CutPoint(
        **dict(
            dict(
                module=index,
                num_modules=len(RESNET32),
                stage=stage,
                channels=channels,
                stride=stride,
                block=index,
                stages=tuple(StageMap(s, 16 * 2**s, 2**s, s) for s in range(3)),
                reduced_block=ReducedResidualBlock,
                later=tuple(blocks[index + 1 :]),
            ),
            **changes,
        )
    )


def map_at(index: int = 3, images: int = 6, size: int = 16) -> torch.Tensor:
    """A module's output, in which gradients can be looked at."""
    _, channels, stride = RESNET32[index]
    return torch.randn(images, channels, size // stride, size // stride).relu().requires_grad_()


def step_with(labels, scores=None, backbone=None, size: int = 16, preprocessor=None) -> LocalStep:
    """A batch with these classes, or shares of them."""
    samples = [DataSample().set_gt_label(label) for label in labels]
    for sample, score in zip(samples, [] if scores is None else scores):
        sample.set_gt_score(score)
    return LocalStep(
        model=SimpleNamespace(data_preprocessor=preprocessor),
        source=SimpleNamespace(backbone=backbone),
        inputs=torch.randn(len(samples), 3, size, size),
        data_samples=samples,
        bank=FeatureBank('off'),
        train=None,
    )


def size_of(module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def negative_log_share(logits: torch.Tensor, labels) -> torch.Tensor:
    """Cross-entropy, written out."""
    shares = logits.exp() / logits.exp().sum(1, keepdim=True)
    return -torch.stack([shares[i, label].log() for i, label in enumerate(labels)]).mean()


def batch_norm(x: torch.Tensor, norm) -> torch.Tensor:
    """Batch normalization with the batch's statistics, written out."""
    over = [d for d in range(x.ndim) if d != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    mean = x.mean(over, keepdim=True)
    variance = ((x - mean) ** 2).mean(over, keepdim=True)
    return (x - mean) / (variance + norm.eps).sqrt() * norm.weight.view(shape) + norm.bias.view(
        shape
    )


def unsettle(module) -> None:
    """Give every parameter a value of its own: ones and zeros hide what is left out."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)


def assert_equal_at(x: torch.Tensor, found: torch.Tensor, expected: torch.Tensor) -> None:
    """The same loss, and the same gradient at the module's end.

    Args:
        x: The module's output.
        found: A loss on it.
        expected: The same, written out.
    """
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, x, retain_graph=True)
    (written_out,) = torch.autograd.grad(expected, x, retain_graph=True)
    assert gradient.norm() > 0
    torch.testing.assert_close(gradient.norm(), written_out.norm())
    torch.testing.assert_close(gradient, written_out)
