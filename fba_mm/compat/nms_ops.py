"""Non-maximum suppression in the place of mmcv's compiled ops of the same names."""

import numpy as np
import torch

__all__ = ['nms', 'nms_match', 'softnms']


def nms(boxes, scores, iou_threshold, offset):
    """Greedy NMS: indices of the kept boxes, by falling score.

    Args:
        boxes (Tensor): (N, 4), as x1, y1, x2, y2 in pixels.
        scores (Tensor): (N,).
        iou_threshold (float): A box goes when its IoU with a kept one is above it.
        offset (int): Width is ``x2 - x1 + offset``; 1 counts the last pixel in.

    Returns:
        Tensor: (K,) int64.
    """
    from torchvision.ops import nms as torchvision_nms

    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    if offset:
        boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + offset), dim=1)
    return torchvision_nms(boxes, scores.to(boxes.dtype), iou_threshold)


def softnms(boxes, scores, dets, iou_threshold, sigma, min_score, method, offset):
    """Soft-NMS (Bodla et al., ICCV 2017): overlapping boxes lose score instead of going at once.

    The best remaining box is always taken, whatever its score; the others are dropped as soon as
    theirs is below ``min_score``. Ties are broken as the compiled op breaks them, whose in-place
    removal moves the last box into the gap.

    Args:
        boxes (Tensor): (N, 4), as x1, y1, x2, y2 in pixels, on the CPU.
        scores (Tensor): (N,).
        dets (Tensor): (N, 5) buffer; its first K rows receive the boxes and their decayed scores.
        iou_threshold (float): Overlap from which ``method`` 0 and 1 act.
        sigma (float): Width of the Gaussian of ``method`` 2.
        min_score (float): Least score of a box that stays.
        method (int): 0 naive (drop), 1 linear (times 1 - IoU), 2 Gaussian (times exp(-IoU²/sigma)).
        offset (int): Width is ``x2 - x1 + offset``.

    Returns:
        Tensor: (K,) int64 indices into ``boxes``, in the order of ``dets``.
    """
    dtype = torch.promote_types(boxes.dtype, torch.float32)
    corners = boxes.detach().to('cpu', dtype).numpy().T
    area = (corners[2] - corners[0] + offset) * (corners[3] - corners[1] + offset)
    # One array, a column per box, so that moving a box moves all that is known of it.
    rows = np.concatenate((corners, scores.detach().to('cpu', dtype).numpy()[None], area[None]))
    x1, y1, x2, y2, score, area = rows
    index = np.arange(rows.shape[1])
    count = rows.shape[1]
    taken = 0
    while taken < count:
        best = taken + int(np.argmax(score[taken:count]))
        if best != taken:
            rows[:, [taken, best]] = rows[:, [best, taken]]
            index[[taken, best]] = index[[best, taken]]
        rest = slice(taken + 1, count)
        width = np.minimum(x2[taken], x2[rest]) - np.maximum(x1[taken], x1[rest]) + offset
        height = np.minimum(y2[taken], y2[rest]) - np.maximum(y1[taken], y1[rest]) + offset
        inter = width.clip(0) * height.clip(0)
        union = area[taken] + area[rest] - inter
        # Two boxes without area share nothing; 0/0 would spread NaN through the scores.
        overlap = np.divide(inter, union, out=np.zeros_like(inter), where=union != 0)
        if method == 0:
            score[rest] *= overlap < iou_threshold
        elif method == 1:
            score[rest] *= np.where(overlap >= iou_threshold, 1 - overlap, 1)
        else:
            score[rest] *= np.exp(-(overlap**2) / sigma)
        taken += 1

        stays = ~(score[taken:count] < min_score)
        kept = int(stays.sum())
        gaps = taken + np.flatnonzero(~stays[:kept])
        fillers = taken + kept + np.flatnonzero(stays[kept:])[::-1]
        rows[:, gaps] = rows[:, fillers]
        index[gaps] = index[fillers]
        count = taken + kept
    dets[:count] = torch.from_numpy(np.ascontiguousarray(rows[:5, :count].T)).to(dets)
    return torch.from_numpy(index[:count].copy())


def nms_match(dets, iou_threshold):
    """Greedy NMS that keeps, with each surviving box, the boxes that it suppressed.

    Args:
        dets (Tensor): (N, 5), as x1, y1, x2, y2, score, on the CPU.
        iou_threshold (float): Overlap from which a box is suppressed.

    Returns:
        list[list[int]]: One group per surviving box: its index, then its suppressed boxes', each by
        falling score.
    """
    from torchvision.ops import box_iou

    dets = dets.detach().to(torch.promote_types(dets.dtype, torch.float32))
    remaining = dets[:, 4].sort(descending=True)[1]
    groups = []
    while len(remaining):
        best, rest = remaining[:1], remaining[1:]
        overlaps = box_iou(dets[best, :4], dets[rest, :4])[0] >= iou_threshold
        groups.append(torch.cat((best, rest[overlaps])).tolist())
        remaining = rest[~overlaps]
    return groups
