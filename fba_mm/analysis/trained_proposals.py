"""Proposals as those of a trained RPN: many of them lie on objects."""

import functools
import sys
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Iterator, List
from unittest import mock

import torch
from torch import Tensor

# More than samplers of mmdet's configs take of them.
HITS = 256
# Of width and height: IoU stays above the .7 that the last stage of a cascade asks for.
_SHIFT = 0.04


@contextmanager
def trained_proposals() -> Iterator[None]:
    """Within this context, proposals in training hit objects, however little an RPN has learned.

    RoI heads train on a fixed number of proposals, but mask heads only on those that hit an object:
    few in the first steps, as many as the sampler takes later. Memory has to suffice for these. So
    up to 256 of the proposals of an image, at most half, are replaced by shifted boxes of its
    objects, and so are the boxes that a stage of a cascade hands to the next. Nothing else is
    touched, and models without an RPN or a cascade not at all.
    """
    module = sys.modules.get('mmdet.models.dense_heads.base_dense_head')
    cascades = sys.modules.get('mmdet.models.roi_heads.bbox_heads')
    with ExitStack() as stack:
        for kind in with_subclasses(cascades.BBoxHead) if cascades else ():
            if 'refine_bboxes' in vars(kind):
                stack.enter_context(
                    mock.patch.object(kind, 'refine_bboxes', _refined(kind.refine_bboxes))
                )
        for kind in with_subclasses(module.BaseDenseHead) if module else ():
            # DETR's predicts no proposals; EmbeddingRPN's, which are learned, are not boxes yet.
            if 'loss_and_predict' in vars(kind):
                stack.enter_context(
                    mock.patch.object(kind, 'loss_and_predict', _hitting(kind.loss_and_predict))
                )
        yield


def with_subclasses(kind: type) -> List[type]:
    """A class and all that descend from it, each once."""
    found = {kind: None}
    for sub in kind.__subclasses__():
        found.update(dict.fromkeys(with_subclasses(sub)))
    return list(found)


def _hitting(loss_and_predict: Callable) -> Callable:

    @functools.wraps(loss_and_predict)
    def wrapped(self: Any, x: Any, batch_data_samples: list, *args: Any, **kwargs: Any) -> tuple:
        losses, results = loss_and_predict(self, x, batch_data_samples, *args, **kwargs)
        for result, sample in zip(results, batch_data_samples):
            if 'bboxes' in result and 'gt_instances' in sample:
                _put_on_objects(_plain(result.bboxes), _plain(sample.gt_instances.bboxes))
        return losses, results

    return wrapped


def _refined(refine_bboxes: Callable) -> Callable:

    @functools.wraps(refine_bboxes)
    def wrapped(self: Any, sampling_results: list, *args: Any, **kwargs: Any) -> Any:
        results = refine_bboxes(self, sampling_results, *args, **kwargs)
        for result, sampled in zip(results or (), sampling_results):
            # Sparse R-CNN's stages have no samples.
            objects = getattr(sampled, 'pos_gt_bboxes', None)
            if objects is not None:
                _put_on_objects(_plain(result.bboxes), _plain(objects))
        return results

    return wrapped


def _plain(boxes: Any) -> Tensor:
    return getattr(boxes, 'tensor', boxes)


@torch.no_grad()
def _put_on_objects(proposals: Tensor, objects: Tensor) -> None:
    count = min(HITS, len(proposals) // 2)
    if not len(objects) or not count or proposals.shape[-1] != objects.shape[-1] != 4:
        return
    chosen = objects[torch.arange(count) % len(objects)].to(proposals)
    size = chosen[:, 2:] - chosen[:, :2]
    # The same each time: losses of one step are to be compared with those of another.
    steps = torch.linspace(-_SHIFT, _SHIFT, count, device=proposals.device).to(proposals)[:, None]
    proposals[:count] = chosen + torch.cat([size, size], 1) * steps
