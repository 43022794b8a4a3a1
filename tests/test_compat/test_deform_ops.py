"""Deformable convolution and attention through mmcv's public names against explicit sampling."""

import itertools
import math
import sys

import pytest
import torch

from fba_mm.compat import deform_ops, install_mmcv_ops

install_mmcv_ops()

from mmcv.ops import DeformConv2d, ModulatedDeformConv2d  # noqa: E402
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction  # noqa: E402


@pytest.fixture(autouse=True)
def answered_here(monkeypatch):
    for name in ('deform_conv', 'modulated_deform_conv', 'multi_scale_deform_attn'):
        monkeypatch.setattr(sys.modules[f'mmcv.ops.{name}'], 'ext_module', deform_ops)


def bilinear(planes, y, x):
    """Value of (C, H, W) at (y, x), zeros around the map; differentiable by all three."""
    top, left = math.floor(y.item()), math.floor(x.item())
    total = planes[:, 0, 0] * 0
    for row, column in itertools.product((top, top + 1), (left, left + 1)):
        if 0 <= row < planes.shape[1] and 0 <= column < planes.shape[2]:
            nearness = (1 - (y - row).abs()) * (1 - (x - column).abs())
            total = total + nearness * planes[:, row, column]
    return total


def deform_conv_reference(layer, x, offset, mask=None):
    batch, channels, _, _ = x.shape
    (kernel_h, kernel_w), groups = layer.kernel_size, layer.groups
    stride, padding, dilation = [
        value if isinstance(value, tuple) else (value, value)
        for value in (layer.stride, layer.padding, layer.dilation)
    ]
    out_h, out_w = offset.shape[2:]
    offset = offset.view(batch, layer.deform_groups, kernel_h, kernel_w, 2, out_h, out_w)
    if mask is not None:
        mask = mask.view(batch, layer.deform_groups, kernel_h, kernel_w, out_h, out_w)
    deform_channels = channels // layer.deform_groups
    outputs = []
    for image, row, column in itertools.product(range(batch), range(out_h), range(out_w)):
        total = 0
        for i, j in itertools.product(range(kernel_h), range(kernel_w)):
            parts = []
            for group in range(layer.deform_groups):
                dy, dx = offset[image, group, i, j, :, row, column]
                planes = x[image, group * deform_channels : (group + 1) * deform_channels]
                part = bilinear(
                    planes,
                    row * stride[0] - padding[0] + i * dilation[0] + dy,
                    column * stride[1] - padding[1] + j * dilation[1] + dx,
                )
                if mask is not None:
                    part = part * mask[image, group, i, j, row, column]
                parts.append(part)
            sampled = torch.cat(parts).view(groups, -1, 1)
            kernel = layer.weight[:, :, i, j].view(groups, -1, channels // groups)
            total = total + (kernel @ sampled).flatten()
        outputs.append(total)
    result = torch.stack(outputs).view(batch, out_h, out_w, -1).permute(0, 3, 1, 2)
    bias = getattr(layer, 'bias', None)
    return result if bias is None else result + bias.view(-1, 1, 1)


SETTINGS = [
    dict(kernel_size=3, padding=1),
    dict(
        kernel_size=(3, 2),
        stride=(2, 1),
        padding=(2, 1),
        dilation=(2, 1),
        groups=2,
        deform_groups=2,
    ),
]


def make_inputs(layer, device, batch=2, height=5, width=6):
    generator = torch.Generator().manual_seed(0)
    plain = torch.nn.functional.conv2d(
        torch.zeros(batch, 4, height, width),
        torch.zeros(layer.weight.shape),
        None,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
    )
    points = layer.deform_groups * layer.weight[0, 0].numel()
    shapes = [
        (batch, 4, height, width),
        (batch, 2 * points) + plain.shape[2:],
        (batch, points) + plain.shape[2:],
    ]
    # Spread out by more than a pixel, so that samples leave the map.
    return [
        (torch.randn(shape, generator=generator, dtype=torch.float64) * 1.5)
        .to(device)
        .requires_grad_()
        for shape in shapes
    ]


def assert_same(actual, expected, leaves):
    torch.testing.assert_close(actual, expected)
    grad = torch.randn(actual.shape, dtype=actual.dtype).to(actual.device)
    gradients = torch.autograd.grad(actual, leaves, grad)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, leaves, grad)):
        assert wanted.abs().sum() > 0
        torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize('settings', SETTINGS, ids=['plain', 'strided groups'])
def test_deform_conv(device, settings):
    layer = DeformConv2d(4, 6, **settings).double().to(device)
    x, offset, _ = make_inputs(layer, device)
    expected = deform_conv_reference(layer, x, offset)
    assert_same(layer(x, offset), expected, [x, offset, layer.weight])


@pytest.mark.parametrize('needed', [0, 1, 2], ids=['input', 'offset', 'weight'])
def test_deform_conv_gradient_of_one(device, needed):
    layer = DeformConv2d(4, 6, 3, padding=1).double().to(device)
    x, offset, _ = make_inputs(layer, device)
    leaves = [x, offset, layer.weight]
    for number, leaf in enumerate(leaves):
        leaf.requires_grad_(number == needed)
    assert_same(layer(x, offset), deform_conv_reference(layer, x, offset), [leaves[needed]])


@pytest.mark.slow
@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('settings', SETTINGS, ids=['plain', 'strided groups'])
def test_modulated_deform_conv(device, settings, bias):
    layer = ModulatedDeformConv2d(4, 6, bias=bias, **settings).double().to(device)
    if bias:
        torch.nn.init.normal_(layer.bias)
    x, offset, mask = make_inputs(layer, device)
    expected = deform_conv_reference(layer, x, offset, mask)
    assert_same(layer(x, offset, mask), expected, [x, offset, mask, *layer.parameters()])


def test_offsets_of_a_larger_map(device):
    # The compiled kernel walks through an image's offsets with the strides of the output's size.
    layer = ModulatedDeformConv2d(4, 6, 3, padding=1).double().to(device)
    x, offset, mask = make_inputs(layer, device)
    height, width = x.shape[2:]

    def larger(values):
        numbers = torch.randn(
            len(values), values.shape[1], 2 * height, 2 * width, dtype=values.dtype, device=device
        )
        flat = numbers.flatten(1)
        flat[:, : values[0].numel()] = values.detach().flatten(1)
        return flat.view_as(numbers).requires_grad_()

    large_offset, large_mask = larger(offset), larger(mask)
    expected = layer(x, offset, mask)
    grads = torch.autograd.grad(expected.square().sum(), [x, offset, mask])
    output = layer(x, large_offset, large_mask)
    torch.testing.assert_close(output, expected)
    found = torch.autograd.grad(output.square().sum(), [x, large_offset, large_mask])
    torch.testing.assert_close(found[0], grads[0])
    for large, gradient in zip(found[1:], grads[1:]):
        read = large.flatten(1)[:, : gradient[0].numel()]
        torch.testing.assert_close(read, gradient.flatten(1))
        assert not large.flatten(1)[:, gradient[0].numel() :].any()


def test_no_offset_is_a_convolution(device):
    layer = DeformConv2d(4, 6, 3, stride=2, padding=1).double().to(device)
    x, offset, _ = make_inputs(layer, device)
    expected = torch.nn.functional.conv2d(x, layer.weight, stride=2, padding=1)
    torch.testing.assert_close(layer(x, torch.zeros_like(offset)), expected)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('kind', [DeformConv2d, ModulatedDeformConv2d])
def test_deform_conv_in_half_precision(device, kind, dtype):
    layer = kind(4, 6, 3, padding=1).double().to(device)
    inputs = make_inputs(layer, device)[: 3 if kind is ModulatedDeformConv2d else 2]
    narrow = [x.detach().to(dtype).requires_grad_() for x in inputs]
    wide = [x.detach().double().requires_grad_() for x in narrow]
    output, expected = layer(*narrow), layer(*wide)
    assert output.dtype == dtype
    tolerance = dict(rtol=0.05, atol=0.05)
    torch.testing.assert_close(output.double(), expected, **tolerance)
    grad = torch.autograd.grad(output.sum(), narrow)
    for gradient, wanted in zip(grad, torch.autograd.grad(expected.sum(), wide)):
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient.double(), wanted, **tolerance)


def attention_reference(value, shapes, locations, weights):
    batch, queries, heads, levels, points, _ = locations.shape
    outputs = []
    for image, query, head in itertools.product(range(batch), range(queries), range(heads)):
        total, start = 0, 0
        for level, (height, width) in enumerate(shapes.tolist()):
            planes = value[image, start : start + height * width, head].T.view(-1, height, width)
            start += height * width
            for point in range(points):
                x, y = locations[image, query, head, level, point]
                sampled = bilinear(planes, y * height - 0.5, x * width - 0.5)
                total = total + weights[image, query, head, level, point] * sampled
        outputs.append(total)
    return torch.stack(outputs).view(batch, queries, -1)


def make_attention(device):
    generator = torch.Generator().manual_seed(0)
    shapes = torch.tensor([[4, 3], [2, 2]])
    start = torch.tensor([0, 12])
    value = torch.randn(2, 16, 2, 3, generator=generator, dtype=torch.float64)
    locations = torch.rand(2, 5, 2, 2, 4, 2, generator=generator, dtype=torch.float64) * 1.4 - 0.2
    weights = torch.rand(2, 5, 2, 2, 4, generator=generator, dtype=torch.float64)
    leaves = [x.to(device).requires_grad_() for x in (value, locations, weights)]
    return leaves, shapes.to(device), start.to(device)


def test_multi_scale_deformable_attention(device):
    (value, locations, weights), shapes, start = make_attention(device)
    output = MultiScaleDeformableAttnFunction.apply(value, shapes, start, locations, weights, 64)
    expected = attention_reference(value, shapes, locations, weights)
    assert_same(output, expected, [value, locations, weights])


def test_attention_in_half_precision(device):
    (value, locations, weights), shapes, start = make_attention(device)
    narrow = value.detach().half().requires_grad_()
    output = MultiScaleDeformableAttnFunction.apply(narrow, shapes, start, locations, weights, 64)
    assert output.dtype == torch.float16
    expected = attention_reference(value, shapes, locations, weights)
    torch.testing.assert_close(output.double(), expected, rtol=0.05, atol=0.05)
    output.sum().backward()
    assert narrow.grad.dtype == torch.float16 and narrow.grad.abs().sum() > 0
