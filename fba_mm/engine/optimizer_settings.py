"""What an optimizer's settings come to for each parameter."""

import difflib
import logging
from typing import Optional

from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from torch import nn

from ..arguments import check_number
from ..errors import LocalLearningError
from ..tasks import backbone_keys


def check_param_groups(optim_wrapper: OptimWrapper, model: nn.Module) -> None:
    """Refuse learning rates and weight decays that are negative, infinite or NaN.

    torch looks at those of the optimizer alone, not at what multipliers make of them.

    Args:
        optim_wrapper: Of the model's parameters.
        model: The model, for the names of its parameters.

    Raises:
        LocalLearningError: Names a parameter that would get such a setting.
    """
    if not isinstance(optim_wrapper, OptimWrapper):
        return  # Several in one.
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optim_wrapper.optimizer.param_groups:
        parameter = names.get(id(next(iter(group['params']), None)), 'some parameters')
        for key in ('lr', 'weight_decay'):
            if isinstance(group.get(key), (int, float)):
                check_number(
                    f'optim_wrapper: {key} of {parameter}',
                    group[key],
                    least=0,
                    fix=': check the optimizer and paramwise_cfg',
                )


def check_keys(optim_wrapper: dict, model: nn.Module) -> None:
    """Refuse keys that name a part of a part of the model that isn't there, and would be ignored.

    Keys without a dot are often there for several networks: of those that match nothing, the log
    tells.

    Args:
        optim_wrapper: Config of the optimizer wrapper.
        model: The model.

    Raises:
        LocalLearningError: Names the key, and one that it may have been meant for.
    """
    keys = (optim_wrapper.get('paramwise_cfg') or {}).get('custom_keys') or {}
    # As constructors see them that show the wrapped backbone in its place.
    names = [
        form
        for name, _ in model.named_parameters()
        for form in (
            name,
            *(name.replace(f'{key}.backbone.', f'{key}.', 1) for key in backbone_keys()),
        )
    ]
    for key in (key for key in keys if not any(key in name for name in names)):
        near = _nearest(key, names)
        if near is None:
            print_log(
                f'optim_wrapper.paramwise_cfg.custom_keys: {key!r} matches no parameter',
                'current',
                logging.WARNING,
            )
        else:
            raise LocalLearningError(
                f'optim_wrapper.paramwise_cfg.custom_keys: {key!r} matches no parameter of the '
                f'model: is {near!r} meant?'
            )


def _nearest(key: str, names: list) -> Optional[str]:
    depth = key.count('.') + 1
    prefixes = {'.'.join(name.split('.')[:depth]) for name in names}
    near = difflib.get_close_matches(key, prefixes, 1, cutoff=0.85)
    return near[0] if near and depth > 1 else None
