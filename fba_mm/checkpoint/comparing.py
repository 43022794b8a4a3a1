"""Comparing checkpoints with a model, before they are loaded into it."""

import re
from typing import Dict, List, Mapping, NamedTuple, Optional

from mmengine.logging import print_log
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import LocalLearningError
from ..local import LocalBackbone, local_backbones
from .resume_state import absent_entries, check_resume_state
from .safe_reading import read_checkpoint


class CheckpointDiff(NamedTuple):
    """How a checkpoint compares with a model, in names of the model's entries.

    Attributes:
        missing: Entries that the checkpoint lacks; those of auxiliary networks are left out if
            it is a checkpoint of the unwrapped model.
        mismatched: Entries of another shape, or whole numbers in place of fractions or the other
            way round, as ``'name (shape and dtype in the checkpoint, in the model)'``.
        recast: Entries of another precision, in the same way.
        unexpected: Entries that the model lacks.
        backbone: The missing and mismatched ones that belong to a wrapped backbone, without the
            layers of a generator that enlarge.
        total: Number of the model's entries.
    """

    missing: List[str]
    mismatched: List[str]
    recast: List[str]
    unexpected: List[str]
    backbone: List[str]
    total: int


def state_dict_of(checkpoint: Mapping) -> Dict[str, Tensor]:
    """The weights in a checkpoint, without the ``module.`` of distributed training.

    Args:
        checkpoint: What :func:`read_checkpoint` returned.
    """
    state_dict = checkpoint.get('state_dict', checkpoint.get('model', checkpoint))
    return {
        re.sub(r'^module\.', '', key): value
        for key, value in state_dict.items()
        if isinstance(value, Tensor)
    }


def compare(model: nn.Module, state_dict: Mapping[str, Tensor]) -> CheckpointDiff:
    """Compare a checkpoint's weights with a model's.

    Args:
        model: The model, with or without a :class:`LocalBackbone`.
        state_dict: Weights of a checkpoint, of the model as it is or of its unwrapped form.
    """
    expected = dict(model.state_dict())
    given = dict(state_dict)
    wrapped = {f'{name}.' if name else '': m for name, m in local_backbones(model).items()}
    for prefix in wrapped:
        given = LocalBackbone.wrapped_keys(given, prefix, expected)
        if not any(k.startswith(f'{prefix}auxiliary.') for k in given):
            auxiliary = f'{prefix}auxiliary.'
            expected = {k: v for k, v in expected.items() if not k.startswith(auxiliary)}
    missing = [k for k in expected if k not in given and not k.endswith('num_batches_tracked')]
    mismatched, recast = {}, []
    for k in (k for k in expected if k in given):
        ours, theirs = expected[k], given[k]
        if (ours.shape, _kind(ours)) != (theirs.shape, _kind(theirs)):
            mismatched[k] = _difference(k, theirs, ours)
        elif ours.dtype != theirs.dtype:
            recast.append(_difference(k, theirs, ours))
    inner = tuple(f'{prefix}backbone.' for prefix in wrapped) or ('backbone.',)
    heads = tuple(
        f'{prefix}backbone.{layer}.'
        for prefix, local_backbone in wrapped.items()
        for layer in local_backbone.head_layers()
    )
    backbone = [
        k for k in (*missing, *mismatched) if k.startswith(inner) and not k.startswith(heads)
    ]
    return CheckpointDiff(
        missing,
        list(mismatched.values()),
        recast,
        [k for k in given if k not in expected],
        backbone,
        len(expected),
    )


def _kind(tensor: Tensor) -> str:
    return (
        'complex'
        if tensor.is_complex()
        else 'fractions'
        if tensor.is_floating_point()
        else 'whole numbers'
    )


def _difference(name: str, given: Tensor, expected: Tensor) -> str:
    forms = [f'{tuple(t.shape)}' for t in (given, expected)]
    if given.dtype != expected.dtype:
        forms = [
            f'{form} {str(t.dtype).replace("torch.", "")}'
            for form, t in zip(forms, (given, expected))
        ]
    return f'{name} ({forms[0]} in the checkpoint, {forms[1]} in the model)'


def check_fit(
    model: nn.Module,
    path: str,
    purpose: str,
    trust: bool = False,
    optimizer: Optional[Optimizer] = None,
) -> None:
    """Refuse a checkpoint that isn't one of this model.

    Args:
        model: The model that it will be loaded into.
        path: A local file. Anything with a ``://`` is left to MMEngine.
        purpose: ``'test'``: every weight has to be there. ``'resume'``: those of auxiliary
            networks as well. ``'load'`` (training starts from it): those of the backbone; a head
            for other classes may differ, or a generator's layers for another scale, and MMEngine's
            log says so.
        trust: As for :func:`read_checkpoint`.
        optimizer: The one that training is to go on with, on resuming.

    Raises:
        LocalLearningError: It does not fit; or it can't be read.
    """
    if '://' in path:
        if purpose == 'resume':
            raise LocalLearningError(f'cannot resume from {path}: download it, give its path')
        return
    checkpoint = read_checkpoint(path, trust=trust)
    state_dict = state_dict_of(checkpoint)
    fit = compare(model, state_dict)
    if purpose == 'resume':
        absent = absent_entries(checkpoint)
        if absent:
            raise LocalLearningError(
                f'cannot resume from {path}: it has no {", ".join(absent)}; start from its weights '
                f'instead, --cfg-options load_from={path}'
            )
        stock = any('.auxiliary.' in k for k in model.state_dict()) and not any(
            '.auxiliary.' in k for k in state_dict
        )
        if stock:
            raise LocalLearningError(
                f'cannot resume from {path}: it has no auxiliary networks, so it was not trained '
                f'locally; start from its weights instead, --cfg-options load_from={path}'
            )
    faults = fit.missing + fit.mismatched
    if purpose == 'resume':
        faults += fit.recast + fit.unexpected
    elif purpose == 'load':
        faults = fit.backbone
    if faults:
        fix = 'give the config that it was trained with'
        if any('.backbone.' in k for k in fit.unexpected):
            fix += ', which lies beside it as a .py file'
            if purpose != 'resume':
                fix += ', or export it first with tools/export.py'
        shown = (fit.mismatched + fit.missing + fit.recast + fit.unexpected)[0]
        raise LocalLearningError(
            f'checkpoint {path} does not fit the model, {len(faults)} of {fit.total} entries '
            f'differ, such as {shown}: {fix}'
        )
    if purpose == 'resume':
        check_resume_state(checkpoint, path, optimizer)
    elif fit.recast:
        print_log(
            f'{path} has {len(fit.recast)} entries of another precision, such as {fit.recast[0]}; '
            "they are cast to the model's",
            'current',
        )
    if fit.unexpected and purpose != 'load':
        print_log(
            f'{path} has {len(fit.unexpected)} entries that the model lacks, such as '
            f'{fit.unexpected[0]}; they are ignored',
            'current',
        )
