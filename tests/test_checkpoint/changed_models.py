"""Models with weights of their own, and whether two predict the same."""

import torch

from ..conftest import batch


def differs(model, seed=1):
    """Make every weight and statistic another one than a fresh model has."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_((torch.rand(tensor.shape, generator=generator) - 0.5) * 0.05)
    return model


def predictions(model):
    with torch.no_grad():
        return [sample.pred_instances for sample in model.eval().test_step(batch())]


def equal(ours, theirs):
    return all(
        torch.equal(a.bboxes, b.bboxes)
        and torch.equal(a.scores, b.scores)
        and torch.equal(a.labels, b.labels)
        and len(a)
        for a, b in zip(ours, theirs)
    )
