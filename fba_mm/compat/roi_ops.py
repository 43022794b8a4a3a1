"""RoIAlign and RoIPool in the place of mmcv's compiled ops of the same names.

Both pool a region of interest ``(image, x1, y1, x2, y2)`` of a feature map into a fixed grid of
bins. torchvision's RoIAlign has mmcv's meaning and does the common case. It has no maximum mode,
and its RoIPool rounds the region to whole pixels, which mmcv's does not, so these two are written
here. 16-bit tensors are computed in 32 bits, for the coordinates' sake.
"""

import torch

__all__ = ['roi_align_backward', 'roi_align_forward', 'roi_pool_backward', 'roi_pool_forward']

# Elements of the features gathered at once: 16 MB in float32.
_SLICE = 1 << 22


def roi_align_forward(
    input,
    rois,
    output,
    argmax_y,
    argmax_x,
    aligned_height,
    aligned_width,
    spatial_scale,
    sampling_ratio,
    pool_mode,
    aligned,
):
    """RoIAlign (He et al., ICCV 2017): bilinear samples in each bin, averaged or their maximum.

    Args:
        input (Tensor): (B, C, H, W).
        rois (Tensor): (K, 5), as image index, x1, y1, x2, y2 in pixels of the image.
        output (Tensor): (K, C, aligned_height, aligned_width) buffer that receives the result.
        argmax_y, argmax_x (Tensor): Buffers of the same shape for ``pool_mode`` 0: where on the map
            the maximum was sampled, -1 for a bin without samples.
        aligned_height, aligned_width (int): Number of bins.
        spatial_scale (float): Map pixels per image pixel.
        sampling_ratio (int): Samples per bin and axis; 0 takes one per map pixel of the bin.
        pool_mode (int): 0 maximum, 1 average.
        aligned (bool): Whether pixel centres lie at half integers.
    """
    features = _full(input)
    rois = rois.to(features.dtype)
    if pool_mode == 1:
        import torchvision  # noqa: F401, registers its operators

        output.copy_(
            torch.ops.torchvision.roi_align(
                features,
                rois,
                spatial_scale,
                aligned_height,
                aligned_width,
                sampling_ratio,
                aligned,
            )
        )
        return
    (height, width), channels = features.shape[2:], features.shape[1]
    (y, in_y), (x, in_x) = _sampling_points(
        rois, (aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned
    )
    y_corners, x_corners = _corners(y, height), _corners(x, width)
    pixels = _as_pixels(features)
    for part in _slices(len(rois), channels * y[:1].numel() * x[:1].numel()):
        first = rois[part, 0].long().view(-1, 1, 1, 1) * (height * width)
        samples = 0
        for y_pixel, y_weight in y_corners:
            for x_pixel, x_weight in x_corners:
                row, column = _spread(y_pixel[part], x_pixel[part])
                row_weight, column_weight = _spread(y_weight[part], x_weight[part])
                values = pixels[first + row * width + column]
                samples = samples + values.mul_((row_weight * column_weight)[..., None])
        inside_y, inside_x = _spread(in_y[part].expand_as(y[part]), in_x[part].expand_as(x[part]))
        inside = (inside_y & inside_x)[..., None]
        best, where = samples.masked_fill_(~inside, -torch.inf).max(dim=3)
        # The compiled op leaves the lowest number of its type in a bin without samples, which no
        # loss survives; its average mode leaves 0.
        empty = ~inside.any(dim=3)
        row, column = _spread(y[part], x[part])
        for buffer, source in ((argmax_y, row), (argmax_x, column)):
            at = source.gather(3, where).masked_fill_(empty, -1)
            buffer[part] = at.permute(0, 3, 1, 2).to(buffer.dtype)
        output[part] = best.masked_fill_(empty, 0).permute(0, 3, 1, 2).to(output.dtype)


def roi_align_backward(
    grad_output,
    rois,
    argmax_y,
    argmax_x,
    grad_input,
    aligned_height,
    aligned_width,
    spatial_scale,
    sampling_ratio,
    pool_mode,
    aligned,
):
    """Add the gradient of :func:`roi_align_forward` by the features to ``grad_input``.

    With ``torch.use_deterministic_algorithms`` on a GPU the average mode multiplies matrices
    instead of scattering, which torchvision's kernel can only do in random order.
    """
    grad = _full(grad_output)
    rois = rois.to(grad.dtype)
    bins = (aligned_height, aligned_width)
    if pool_mode == 0:
        grad_input.add_(
            _scatter_bilinear(
                grad, rois, argmax_y.to(grad.dtype), argmax_x.to(grad.dtype), grad_input.shape
            )
        )
    elif grad.is_cuda and torch.are_deterministic_algorithms_enabled():
        grad_input.add_(
            _roi_align_gradient_by_matrices(
                grad, rois, grad_input.shape, bins, spatial_scale, sampling_ratio, aligned
            )
        )
    else:
        import torchvision  # noqa: F401, registers its operators

        grad_input.add_(
            torch.ops.torchvision._roi_align_backward(
                grad, rois, spatial_scale, *bins, *grad_input.shape, sampling_ratio, aligned
            )
        )


def roi_pool_forward(input, rois, output, argmax, pooled_height, pooled_width, spatial_scale):
    """RoIPool (Girshick, ICCV 2015): the largest pixel of each bin, bins widened to whole pixels.

    Args:
        input (Tensor): (B, C, H, W).
        rois (Tensor): (K, 5), as image index, x1, y1, x2, y2 in pixels of the image; x2 and y2
            count as inside.
        output (Tensor): (K, C, pooled_height, pooled_width) buffer that receives the result, 0 for
            a bin without pixels.
        argmax (Tensor): int32 buffer of the same shape: y * W + x of the largest pixel, or -1.
        pooled_height, pooled_width (int): Number of bins.
        spatial_scale (float): Map pixels per image pixel.
    """
    features = _full(input)
    rois = rois.to(features.dtype)
    (height, width), channels = features.shape[2:], features.shape[1]
    start, end = rois[:, 1:3] * spatial_scale, (rois[:, 3:5] + 1) * spatial_scale
    malformed = (end <= start).any(dim=1)
    x, in_x = _pixels_of_bins(start[:, 0], end[:, 0], pooled_width, width)
    y, in_y = _pixels_of_bins(start[:, 1], end[:, 1], pooled_height, height)
    in_y = in_y & ~malformed[:, None, None]
    pixels = _as_pixels(features)
    for part in _slices(len(rois), channels * y[:1].numel() * x[:1].numel()):
        row, column = _spread(y[part], x[part])
        at = row * width + column
        first = rois[part, 0].long().view(-1, 1, 1, 1) * (height * width)
        inside_y, inside_x = _spread(in_y[part], in_x[part])
        inside = (inside_y & inside_x)[..., None]
        values = pixels[first + at].masked_fill_(~inside, -torch.inf)
        best, where = values.max(dim=3)
        empty = ~inside.any(dim=3)
        at = at.gather(3, where).masked_fill_(empty, -1)
        output[part] = best.masked_fill_(empty, 0).permute(0, 3, 1, 2).to(output.dtype)
        argmax[part] = at.permute(0, 3, 1, 2).to(argmax.dtype)


def roi_pool_backward(
    grad_output, rois, argmax, grad_input, pooled_height, pooled_width, spatial_scale
):
    """Add the gradient of :func:`roi_pool_forward` by the features to ``grad_input``."""
    grad = _full(grad_output)
    plane = _planes(rois, grad_input.shape)
    total = grad.new_zeros(grad_input.numel())
    total.index_add_(0, (plane + argmax.clamp(min=0)).flatten(), (grad * (argmax >= 0)).flatten())
    grad_input.add_(total.view_as(grad_input))


def _full(tensor):
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _slices(count, elements_each):
    """Slices of ``count`` regions that gather at most ``_SLICE`` elements together."""
    step = max(1, _SLICE // max(1, elements_each))
    return [slice(start, start + step) for start in range(0, count, step)]


def _as_pixels(features):
    """(B·H·W, C): gathering whole pixels is one copy of consecutive channels each."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def _planes(rois, shape):
    """(K, C, 1, 1): where the map of a region's image and channel starts in the flat features."""
    _, channels, height, width = shape
    plane = rois[:, 0].long()[:, None] * channels + torch.arange(channels, device=rois.device)
    return (plane * (height * width))[..., None, None]


def _spread(y, x):
    """(K, PH, I) and (K, PW, J) as two (K, PH, PW, I·J): one entry per bin and point in it."""
    shape = (y.shape[0], y.shape[1], x.shape[1], y.shape[2], x.shape[2])
    return (
        y[:, :, None, :, None].expand(shape).flatten(3),
        x[:, None, :, None, :].expand(shape).flatten(3),
    )


def _sampling_points(rois, bins, spatial_scale, sampling_ratio, aligned):
    """For y and x: points (K, bins, I) on the map, and which of the I a region uses (K, 1, I)."""
    shift = 0.5 if aligned else 0.0
    axes = []
    for axis, num_bins in zip((2, 1), bins):
        start = rois[:, axis] * spatial_scale - shift
        size = rois[:, axis + 2] * spatial_scale - shift - start
        if not aligned:
            size = size.clamp(min=1)
        bin_size = (size / num_bins)[:, None, None]
        grid = torch.full_like(bin_size, sampling_ratio) if sampling_ratio > 0 else bin_size.ceil()
        most = int(grid.max().clamp(min=1)) if len(rois) else 1
        index = torch.arange(most, device=rois.device)
        number = torch.arange(num_bins, device=rois.device)[None, :, None]
        points = start[:, None, None] + number * bin_size + (index + 0.5) * bin_size / grid
        axes.append((points, index < grid))
    return axes


def _corners(points, size):
    """The two map pixels beside each point and their weights, 0 for a point outside the map."""
    valid = (points >= -1) & (points <= size)
    points = points.clamp(0, size - 1).nan_to_num()
    low = points.floor()
    high_weight = (points - low) * valid
    low_weight = valid.to(points.dtype) - high_weight
    low = low.long()
    return (low, low_weight), ((low + 1).clamp(max=size - 1), high_weight)


def _scatter_bilinear(grad, rois, y, x, shape):
    """Gradient by the features where every output is one bilinear sample at (y, x)."""
    _, _, height, width = shape
    plane = _planes(rois, shape)
    grad = grad * (y != -1)
    total = grad.new_zeros(shape.numel())
    for row, row_weight in _corners(y, height):
        for column, column_weight in _corners(x, width):
            at = plane + row * width + column
            total.index_add_(0, at.flatten(), (grad * row_weight * column_weight).flatten())
    return total.view(shape)


def _roi_align_gradient_by_matrices(
    grad, rois, shape, bins, spatial_scale, sampling_ratio, aligned
):
    """Gradient of average RoIAlign, which is linear and separable: ``Y @ features @ X.T``."""
    images, channels, height, width = shape
    matrices = []
    points = _sampling_points(rois, bins, spatial_scale, sampling_ratio, aligned)
    for (at, inside), size in zip(points, (height, width)):
        used = inside & (at >= -1) & (at <= size)
        pixels = torch.arange(size, device=rois.device, dtype=grad.dtype)
        nearness = 1 - (at.clamp(0, size - 1).nan_to_num()[..., None] - pixels).abs()
        total = (nearness.clamp(min=0) * used[..., None]).sum(2)
        matrices.append(total / inside.sum(2, keepdim=True).clamp(min=1))
    by_y, by_x = matrices
    result = grad.new_zeros(shape)
    with torch.autocast(grad.device.type, enabled=False):
        for image in range(images):
            regions = (rois[:, 0] == image).nonzero()[:, 0]
            for part in _slices(len(regions), channels * bins[0] * width):
                which = regions[part]
                columns = grad[which] @ by_x[which][:, None]
                columns = columns.transpose(0, 1).reshape(channels, -1, width)
                result[image] += by_y[which].reshape(-1, height).T @ columns
    return result


def _pixels_of_bins(start, end, num_bins, size):
    """Along one axis: pixels (K, bins, I) of each bin, and which of the I are the bin's own."""
    number = torch.arange(num_bins, device=start.device)
    bin_size = ((end - start) / num_bins)[:, None]
    first = (number * bin_size + start[:, None]).floor().clamp(0, size).long()
    last = ((number + 1) * bin_size + start[:, None]).ceil().clamp(0, size).long()
    most = int((last - first).max().clamp(min=1)) if len(start) else 1
    pixels = first[..., None] + torch.arange(most, device=start.device)
    return pixels.clamp(max=size - 1), pixels < last[..., None]
