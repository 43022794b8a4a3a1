"""The ways to train a model, each a function from its stock config to another one."""

import copy
from dataclasses import dataclass
from functools import partial
from typing import Callable, List, Optional, Sequence, Union

from mmengine.config import Config

from ..analysis.activation_checkpointing import takes_with_cp
from ..analysis.baselines import backbone_of
from ..analysis.memory_fit import count_blocks, module_counts
from ..analysis.simulated_step import quiet
from ..analysis.synthetic_batch import batch_shape
from ..config import backbone_key
from ..errors import LocalLearningError
from ..localize import checkpointed, localize, sliced

Count = Union[int, str]

EXACT = 'none: the same gradients'
# What trainings of the two have come to, see benchmarks/results/.
_LOCAL = {
    ('detection', 'light'): 'RetinaNet from scratch: -7 to +1 mAP at equal epochs',
    ('detection', 'pooled'): 'RetinaNet from scratch: -2 to +7 mAP at equal epochs',
    (
        'segmentation',
        'light',
    ): 'FCN from scratch: -14 mIoU at equal epochs, -3 after three times as many',
    ('segmentation', 'shared'): 'FCN from scratch: -14 mIoU at equal epochs',
    ('classification', 'own'): 'ResNet from scratch: -1 to -5 points at equal epochs',
    ('super-resolution', 'light'): 'EDSR: none seen (+0.1 dB, 3 seeds)',
}
_UNKNOWN = 'not measured'


@dataclass(frozen=True)
class Way:
    """One way to train.

    Attributes:
        name: For tables and messages.
        exact: Whether losses and gradients are those of the stock config.
        accuracy: What it is known to cost.
        configure: Makes the stock config train this way; the config that it is given stays as it
            is.
        how: The options of ``tools/train.py`` that ask for it; empty if only a budget does.
    """

    name: str
    exact: bool
    accuracy: str
    configure: Callable[[Config], Config]
    how: str = ''


@dataclass(frozen=True)
class Series:
    """Ways that differ in one number: the higher, the less memory and the more time they take.

    Attributes:
        make: From a number to a way.
        numbers: To choose from, in increasing order.
    """

    make: Callable[[Count], Way]
    numbers: Sequence[Count]


def ways_to_train(cfg: Config) -> List[Union[Way, Series]]:
    """The ways that there are for a config, exact ones first; the config's own is the first.

    Args:
        cfg: A stock config.

    Raises:
        LocalLearningError: The config has no backbone or generator.

    Example:
        >>> [way.name for way in ways_to_train(cfg) if isinstance(way, Way)]
        ['as shipped', 'with_cp=True']
    """
    found: List[Union[Way, Series]] = [Way('as shipped', True, EXACT, copy.deepcopy)]
    with quiet():
        in_slices = sliced(cfg)
    # With everything that is exact and costs next to nothing, ways have no need to say so.
    free = '' if in_slices.model.to_dict() == cfg.model.to_dict() else ' --slices'
    if free:
        found.append(Way('losses in slices', True, EXACT, sliced, '--slices'))
    if takes_with_cp(cfg) and not backbone_of(cfg).get('with_cp'):
        found.append(
            Way(
                'with_cp=True',
                True,
                EXACT,
                _with_cp,
                f'--cfg-options model.{backbone_key(cfg.model)}.with_cp=True{free}',
            )
        )
    try:
        blocks = count_blocks(cfg)
    except LocalLearningError:
        return found  # The backbone can't be cut.
    images = batch_shape(cfg)[0]
    found += [_checkpointing(spans, None, free) for spans in (3, 'blocks')]
    if images > 1:
        found.append(_checkpointing('blocks', 1, free))
    numbers: List[Count] = [
        *(number for number in module_counts(blocks) if 1 < number < blocks),
        'blocks',
    ]
    if blocks > 1:
        task = task_of(cfg)
        kinds = _heads(cfg)
        for kind in kinds:
            found.append(Series(partial(_local, task, kind, '', {}), numbers))
        for kind in kinds[:1]:
            found.append(
                Series(
                    partial(_local, task, kind, ', recomputed', dict(recompute='blocks')), numbers
                )
            )
            if images > 1 and task == 'detection':
                found.append(
                    Series(
                        partial(
                            _local, task, kind, ', one image at a time', dict(head_batch_size=1)
                        ),
                        numbers,
                    )
                )
    return found


def _with_cp(cfg: Config) -> Config:
    cfg = sliced(cfg)
    backbone_of(cfg).with_cp = True
    return cfg


def _checkpointing(spans: Count, images: Optional[int], options: str) -> Way:
    how = f'--checkpoint {spans}{options}'
    name = f'checkpointing, {spans} spans' if spans != 'blocks' else 'checkpointing, blocks'
    if images is not None:
        name += ', one image at a time'
        how = ''
    return Way(name, True, EXACT, lambda cfg: checkpointed(sliced(cfg), spans, images), how)


def _local(task: str, heads: str, note: str, settings: dict, num_modules: Count) -> Way:
    kind = "the model's head" if heads in ('pooled', 'shared') else f'{heads} heads'
    options = ''.join(
        f' --checkpoint {value}' for key, value in settings.items() if key == 'recompute'
    )
    return Way(
        f'local, K={num_modules}, {kind}{note}',
        False,
        _LOCAL.get((task, heads), _UNKNOWN),
        partial(localize, num_modules=num_modules, auxiliary=heads, **settings),
        ''
        if 'head_batch_size' in settings
        else f'--local {num_modules} --auxiliary {heads}{options}',
    )


def task_of(cfg: Config) -> str:
    """``'detection'``, ``'classification'``, ``'segmentation'`` or ``'super-resolution'``.

    Args:
        cfg: A training config.
    """
    model = cfg.model
    if backbone_key(model) == 'generator':
        return 'super-resolution'
    if 'decode_head' in model:
        return 'segmentation'
    head = model.get('head')
    return 'classification' if isinstance(head, dict) and 'num_classes' in head else 'detection'


def _heads(cfg: Config) -> List[str]:
    """Kinds of heads that a config's modules can learn from, the default first."""
    kinds = dict(
        detection=['light', 'pooled'], classification=['own'], segmentation=['light', 'shared']
    )
    found = []
    for heads in kinds.get(task_of(cfg), ['light']):
        try:
            with quiet():
                localize(cfg, auxiliary=heads)
        except LocalLearningError:
            continue  # A detector that is none of boxes, for instance.
        found.append(heads)
    return found
