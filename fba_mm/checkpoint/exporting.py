"""Turning checkpoints of local learning into stock ones."""

import os
from typing import Mapping

import torch
from torch import nn

from ..errors import LocalLearningError
from ..local import local_backbones
from .atomic_backend import replacing
from .comparing import state_dict_of


def export_checkpoint(model: nn.Module, checkpoint: Mapping) -> dict:
    """Turn a checkpoint of a local-learning config into one of its stock config.

    Args:
        model: The local-learning model, for the names in it.
        checkpoint: What :func:`read_checkpoint` returned.

    Returns:
        ``state_dict`` with the stock names, without auxiliary networks; and ``meta`` without the
        config. Optimizer state and log history, which belong to the local training, stay behind.

    Raises:
        LocalLearningError: The model has no :class:`LocalBackbone`.
    """
    prefixes = list(local_backbones(model))
    if not prefixes:
        raise LocalLearningError(
            'the config has no LocalBackbone: its checkpoints are stock ones already'
        )
    state_dict = state_dict_of(checkpoint)
    for prefix in (f'{name}.' if name else '' for name in prefixes):
        inner, auxiliary = f'{prefix}backbone.', f'{prefix}auxiliary.'
        state_dict = {
            prefix + k[len(inner) :] if k.startswith(inner) else k: v
            for k, v in state_dict.items()
            if not k.startswith(auxiliary)
        }
    meta = {k: v for k, v in checkpoint.get('meta', {}).items() if k != 'config'}
    return dict(meta=meta, state_dict=state_dict)


def write_checkpoint(checkpoint: dict, path: str) -> None:
    """Write a checkpoint completely, or not at all.

    Args:
        checkpoint: What to write.
        path: Where to. A file that is there is replaced in one step.

    Raises:
        LocalLearningError: It can't be written there.
    """
    try:
        if os.path.isdir(path):
            raise IsADirectoryError('it is a directory')
        with replacing(path) as file:
            torch.save(checkpoint, file)
    except OSError as error:
        raise LocalLearningError(
            f'cannot write {path} ({error.strerror or error}): give another path'
        ) from error
