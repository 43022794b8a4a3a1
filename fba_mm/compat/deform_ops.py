"""Deformable convolution and attention in the place of mmcv's compiled ops of the same names.

torchvision's deformable convolution has mmcv's meaning and memory layout: offsets come as (dy, dx)
per kernel point and deformable group, and a point outside the map by a pixel or more counts 0.
16-bit tensors are computed in 32 bits, for the offsets' sake.
"""

import torch
import torch.nn.functional as F

from .torch_versions import give_deform_conv_shapes

__all__ = [
    'deform_conv_backward_input',
    'deform_conv_backward_parameters',
    'deform_conv_forward',
    'modulated_deform_conv_backward',
    'modulated_deform_conv_forward',
    'ms_deform_attn_backward',
    'ms_deform_attn_forward',
]


def _full(*tensors):
    """The tensors in the first one's precision, at least float32."""
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return [tensor.to(dtype) for tensor in tensors]


def deform_conv_forward(
    input,
    weight,
    offset,
    output,
    columns,
    ones,
    kW,
    kH,
    dW,
    dH,
    padW,
    padH,
    dilationW,
    dilationH,
    group,
    deformable_group,
    im2col_step,
):
    """Deformable convolution (Dai et al., ICCV 2017).

    Args:
        input (Tensor): (B, C_in, H, W).
        weight (Tensor): (C_out, C_in / group, kH, kW).
        offset (Tensor): (B, deformable_group * kH * kW * 2, H_out, W_out), in pixels.
        output (Tensor): (B, C_out, H_out, W_out) buffer that receives the result.
        columns, ones (Tensor): Scratch of the compiled op; untouched, like ``im2col_step``.
    """
    from torchvision.ops import deform_conv2d

    give_deform_conv_shapes()
    features, kernel, shift = _full(input, weight, offset)
    output.copy_(
        deform_conv2d(features, shift, kernel, None, (dH, dW), (padH, padW), (dilationH, dilationW))
    )


def deform_conv_backward_input(
    input,
    offset,
    gradOutput,
    gradInput,
    gradOffset,
    weight,
    columns,
    kW,
    kH,
    dW,
    dH,
    padW,
    padH,
    dilationW,
    dilationH,
    group,
    deformable_group,
    im2col_step,
):
    """Add the gradients of :func:`deform_conv_forward` by input and offset to the buffers."""
    grad_input, _, grad_offset, _, _ = _deform_conv_backward(
        gradOutput,
        input,
        weight,
        offset,
        None,
        (dH, dW),
        (padH, padW),
        (dilationH, dilationW),
        group,
        deformable_group,
    )
    gradInput.add_(grad_input)
    gradOffset.add_(grad_offset)


def deform_conv_backward_parameters(
    input,
    offset,
    gradOutput,
    gradWeight,
    columns,
    ones,
    kW,
    kH,
    dW,
    dH,
    padW,
    padH,
    dilationW,
    dilationH,
    group,
    deformable_group,
    scale,
    im2col_step,
):
    """Add ``scale`` times the gradient by the weight to ``gradWeight``.

    torchvision computes all gradients together, so this repeats
    :func:`deform_conv_backward_input`'s work; DCNv2 has one backward op and does not.
    """
    _, grad_weight, _, _, _ = _deform_conv_backward(
        gradOutput,
        input,
        gradWeight,
        offset,
        None,
        (dH, dW),
        (padH, padW),
        (dilationH, dilationW),
        group,
        deformable_group,
    )
    gradWeight.add_(grad_weight, alpha=scale)


def modulated_deform_conv_forward(
    input,
    weight,
    bias,
    ones,
    offset,
    mask,
    output,
    columns,
    kernel_h,
    kernel_w,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    dilation_h,
    dilation_w,
    group,
    deformable_group,
    with_bias,
):
    """Deformable convolution with a factor per sampling point (DCNv2, Zhu et al., CVPR 2019).

    As :func:`deform_conv_forward`, with ``mask`` (B, deformable_group * kH * kW, H_out, W_out) and,
    if ``with_bias``, ``bias`` (C_out,). Offsets and mask may come on a larger map; see
    :func:`_as_read`.
    """
    from torchvision.ops import deform_conv2d

    give_deform_conv_shapes()
    features, kernel, summand, shift, factor = _full(
        input, weight, bias, _as_read(offset, output), _as_read(mask, output)
    )
    output.copy_(
        deform_conv2d(
            features,
            shift,
            kernel,
            summand if with_bias else None,
            (stride_h, stride_w),
            (pad_h, pad_w),
            (dilation_h, dilation_w),
            factor,
        )
    )


def modulated_deform_conv_backward(
    input,
    weight,
    bias,
    ones,
    offset,
    mask,
    columns,
    grad_input,
    grad_weight,
    grad_bias,
    grad_offset,
    grad_mask,
    grad_output,
    kernel_h,
    kernel_w,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    dilation_h,
    dilation_w,
    group,
    deformable_group,
    with_bias,
):
    """Add all gradients of :func:`modulated_deform_conv_forward` to the buffers."""
    gradients = _deform_conv_backward(
        grad_output,
        input,
        weight,
        _as_read(offset, grad_output),
        _as_read(mask, grad_output),
        (stride_h, stride_w),
        (pad_h, pad_w),
        (dilation_h, dilation_w),
        group,
        deformable_group,
    )
    buffers = (
        grad_input,
        grad_weight,
        _as_read(grad_offset, grad_output),
        _as_read(grad_mask, grad_output),
        grad_bias,
    )
    for buffer, gradient in zip(buffers if with_bias else buffers[:-1], gradients):
        buffer.add_(gradient)


def _as_read(values, output):
    """What mmcv's kernel reads of an image's offsets or masks: the first numbers, in a row.

    It is told the output's size alone. DyHead (Dai et al., CVPR 2021) as mmdet has it relies on
    that: the offsets of one level serve the next, whose map is smaller.
    """
    if values.shape[2:] == output.shape[2:]:
        return values
    batch, channels = values.shape[:2]
    size = channels * output.shape[2] * output.shape[3]
    return values.view(batch, -1)[:, :size].view(batch, channels, *output.shape[2:])


def _deform_conv_backward(
    grad_output, input, weight, offset, mask, stride, padding, dilation, groups, deform_groups
):
    """Gradients by input, weight, offset, mask and bias."""
    give_deform_conv_shapes()
    use_mask = mask is not None
    grad, features, kernel, shift, factor = _full(
        grad_output, input, weight, offset, mask if use_mask else input.new_zeros(len(input), 1)
    )
    return torch.ops.torchvision._deform_conv2d_backward(
        grad,
        features,
        kernel,
        shift,
        factor,
        grad.new_zeros(len(weight)),
        *stride,
        *padding,
        *dilation,
        groups,
        deform_groups,
        use_mask,
    )


def ms_deform_attn_forward(
    value,
    value_spatial_shapes,
    value_level_start_index,
    sampling_locations,
    attention_weights,
    im2col_step,
):
    """Multi-scale deformable attention (Zhu et al., ICLR 2021).

    Args:
        value (Tensor): (B, num_keys, heads, dim), the levels one after the other.
        value_spatial_shapes (Tensor): (levels, 2) int64, as height, width.
        value_level_start_index (Tensor): (levels,) int64, where a level starts among the keys.
        sampling_locations (Tensor): (B, queries, heads, levels, points, 2), as x, y in [0, 1].
        attention_weights (Tensor): (B, queries, heads, levels, points).
        im2col_step (int): Batch slicing of the compiled op; unused.

    Returns:
        Tensor: (B, queries, heads * dim).
    """
    batch, _, heads, dim = value.shape
    output = 0
    for level in _levels(
        value, value_spatial_shapes, value_level_start_index, sampling_locations, attention_weights
    ):
        _, maps, grid, weights = level
        output = output + (_sample(maps, grid) * weights).sum(-1)
    return output.view(batch, heads * dim, -1).transpose(1, 2).contiguous().to(value.dtype)


def ms_deform_attn_backward(
    value,
    value_spatial_shapes,
    value_level_start_index,
    sampling_locations,
    attention_weights,
    grad_output,
    grad_value,
    grad_sampling_loc,
    grad_attn_weight,
    im2col_step,
):
    """Add the gradients of :func:`ms_deform_attn_forward` to the three ``grad_`` buffers."""
    batch, _, heads, dim = value.shape
    grad = _full(grad_output)[0].transpose(1, 2).reshape(batch * heads, dim, -1, 1)
    levels = _levels(
        value, value_spatial_shapes, value_level_start_index, sampling_locations, attention_weights
    )
    for number, (keys, maps, grid, weights) in enumerate(levels):
        by_weight = (_sample(maps, grid) * grad).sum(1)
        by_maps, by_grid = torch.ops.aten.grid_sampler_2d_backward(
            grad * weights, maps, grid, 0, 0, False, [True, True]
        )
        grad_value[:, keys].add_(by_maps.view(batch, heads, dim, -1).permute(0, 3, 1, 2))
        by_grid = by_grid.view(batch, heads, *by_grid.shape[1:]).transpose(1, 2)
        grad_sampling_loc[:, :, :, number].add_(by_grid, alpha=2)
        by_weight = by_weight.view(batch, heads, *by_weight.shape[1:]).transpose(1, 2)
        grad_attn_weight[:, :, :, number].add_(by_weight)


def _levels(value, spatial_shapes, start_index, locations, weights):
    """Per level: its keys, maps (B·heads, dim, H, W), grid in [-1, 1] and attention weights."""
    # One level at a time: its samples alone are as large as the whole output times the points.
    value, locations, weights = _full(value, locations, weights)
    batch, _, heads, dim = value.shape
    for number, ((height, width), start) in enumerate(
        zip(spatial_shapes.tolist(), start_index.tolist())
    ):
        keys = slice(start, start + height * width)
        maps = value[:, keys].permute(0, 2, 3, 1).reshape(batch * heads, dim, height, width)
        grid = (2 * locations[:, :, :, number] - 1).transpose(1, 2).flatten(0, 1)
        yield keys, maps, grid, weights[:, :, :, number].transpose(1, 2).flatten(0, 1)[:, None]


def _sample(maps, grid):
    return F.grid_sample(maps, grid, mode='bilinear', padding_mode='zeros', align_corners=False)
