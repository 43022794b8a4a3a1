"""The ways to train a model, each a function from its stock config to another one."""

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Callable, List, Optional, Sequence, Union

from mmengine.config import Config
from mmengine.dist import is_distributed

from ..analysis.activation_checkpointing import takes_with_cp
from ..analysis.memory_fit import count_blocks, module_counts
from ..analysis.simulated_step import quiet
from ..analysis.step_configs import backbone_of
from ..analysis.synthetic_batch import batch_shape
from ..errors import LocalLearningError
from ..localize import accumulated, checkpointed, image_by_image, localize, sliced
from ..tasks import Task, backbone_key, task_of

Count = Union[int, str]

EXACT = 'none: the same gradients'
_UNKNOWN = 'not measured'
_HEAD = ', neck and head'
# Of more images, one at a time is slow; accumulation takes several.
_FEW = 8


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
        kind: ``'bp'``, ``'slices'``, ``'checkpointing'``, ``'images'``, ``'accumulation'`` or
            ``'local'``.
        recomputes_head: Whether neck and dense heads run twice, too: that takes less memory and
            more time than the other ways of the kind.
    """

    name: str
    exact: bool
    accuracy: str
    configure: Callable[[Config], Config]
    how: str = ''
    kind: str = 'local'
    recomputes_head: bool = False


@dataclass(frozen=True)
class Series:
    """Ways that differ in one number: the higher it is, the more time they take.

    Attributes:
        make: From a number to a way.
        numbers: To choose from, in increasing order.
        exact: Whether the ways are. Then memory falls with the number; that of local ways may rise
            again, as each module has a head.
        kind: Of the ways.
        dominated: Whether an earlier series takes less of both for the same number. Such a series
            is there to be compared with, not to be chosen from.
    """

    make: Callable[[Count], Way]
    numbers: Sequence[Count]
    exact: bool = False
    kind: str = 'local'
    dominated: bool = False


def ways_to_train(cfg: Config, images: Optional[int] = None) -> List[Union[Way, Series]]:
    """The ways that there are for a config, exact ones first; the config's own is the first.

    Args:
        cfg: A stock config.
        images: Of a batch; unset, as many as the config's.

    Raises:
        LocalLearningError: The config has no backbone or generator.

    Example:
        >>> cfg = load_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
        >>> [way.name for way in ways_to_train(cfg) if isinstance(way, Way)][:3]
        ['as shipped', 'losses in slices', 'with_cp=True']
    """
    return [*exact_ways(cfg, images), *local_ways(cfg, images)]


def exact_ways(cfg: Config, images: Optional[int] = None) -> List[Union[Way, Series]]:
    """The ways to train whose gradients are those of the config itself, which is the first.

    Args:
        cfg: A stock config.
        images: Of a batch; unset, as many as the config's.
    """
    found: List[Union[Way, Series]] = [Way('as shipped', True, EXACT, copy.deepcopy, kind='bp')]
    with quiet():
        in_slices = sliced(cfg)
    # With everything that is exact and costs next to nothing, ways have no need to say so.
    free = '' if in_slices.model.to_dict() == cfg.model.to_dict() else ' --slices'
    if free:
        found.append(Way('losses in slices', True, EXACT, sliced, '--slices', 'slices'))
    images = batch_shape(cfg)[0] if images is None else images
    # Beyond sixteen parts, little is left to save.
    parts = sorted({n for n in (2, 4, 8, 16, images) if 1 < n <= min(images, 16)})
    if parts and not is_distributed():
        found.append(Series(partial(_accumulation, images, None), parts, True, 'accumulation'))
    if takes_with_cp(cfg) and not backbone_of(cfg).get('with_cp'):
        options = f'--cfg-options model.{backbone_key(cfg.model)}.with_cp=True{free}'
        found.append(Way('with_cp=True', True, EXACT, _with_cp, options, 'checkpointing'))
    try:
        count_blocks(cfg)
    except LocalLearningError:
        return found  # The backbone can't be cut.
    for spans in (3, 'blocks'):
        found.append(
            Way(
                _spans(spans),
                True,
                EXACT,
                partial(_checkpointing, spans),
                f'--checkpoint {spans}{free}',
                'checkpointing',
            )
        )
    heads = [False]
    if any(name in cfg.model for name in task_of(cfg).dense_heads):
        heads.append(True)
    if parts and not is_distributed():
        found.append(Series(partial(_accumulation, images, 3), parts, True, 'accumulation'))
        found += [_accumulation(images, 3, parts[-1], head) for head in heads[1:]]
    if images <= _FEW:
        for head in heads:
            name = f'{_spans(3)}{_HEAD * head}, image by image'
            configure = partial(image_by_image, head=head)
            found.append(Way(name, True, EXACT, configure, '', 'images', head))
    return found


def local_ways(cfg: Config, images: Optional[int] = None) -> List[Series]:
    """The ways to train by local learning, over the number of modules.

    Args:
        cfg: A stock config.
        images: Of a batch; unset, as many as the config's.
    """
    try:
        blocks = count_blocks(cfg)
    except LocalLearningError:
        return []
    numbers: List[Count] = [
        *(number for number in module_counts(blocks) if 1 < number < blocks),
        'blocks',
    ]
    if blocks < 2:
        return []
    task, kinds = task_of(cfg), _heads(cfg)
    found = [Series(partial(local_way, task, kind), numbers) for kind in kinds[:1]]
    images = batch_shape(cfg)[0] if images is None else images
    recomputed = partial(_recomputed, task, 1 if images <= _FEW else None)
    found += [Series(partial(recomputed, kind), numbers) for kind in kinds[:1]]
    found += [Series(partial(local_way, task, kind), numbers, dominated=True) for kind in kinds[1:]]
    return found


def _with_cp(cfg: Config) -> Config:
    cfg = sliced(cfg)
    backbone_of(cfg).with_cp = True
    return cfg


def _checkpointing(spans: Count, cfg: Config) -> Config:
    return checkpointed(sliced(cfg), spans)


def _spans(spans: Count) -> str:
    return 'checkpointing, blocks' if spans == 'blocks' else f'checkpointing, {spans} spans'


def _accumulation(images: int, spans: Optional[int], parts: int, head: bool = False) -> Way:
    at_once = -(-images // parts)
    name = f'accumulation, {at_once} image{"s" * (at_once > 1)} at a time'
    if spans is not None:
        name += f', {_spans(spans)}{_HEAD * head}'

    def configure(cfg: Config) -> Config:
        cfg = sliced(cfg)
        if spans is not None:
            cfg = checkpointed(cfg, spans, head=head)
        return accumulated(cfg, at_once)

    return Way(name, True, EXACT, configure, '', 'accumulation', head)


def _recomputed(task: Task, at_once: Optional[int], heads: str, num_modules: Count) -> Way:
    """Local learning with each module recomputed, some images at once."""
    way = local_way(task, heads, num_modules, 'blocks')
    if at_once is None:
        return way

    def configure(cfg: Config) -> Config:
        cfg = way.configure(cfg)
        backbone_of(cfg).recompute_batch_size = at_once
        return cfg

    return replace(way, name=f'{way.name} image by image', configure=configure, how='')


def local_way(
    task: Task, heads: Optional[str], num_modules: Count, recompute: Optional[Count] = None
) -> Way:
    """Local learning in a number of modules.

    Args:
        task: The config's, from :func:`task_of`.
        heads: Auxiliary networks, as :func:`localize` names them; None for the default.
        num_modules: K.
        recompute: Spans of each module that are recomputed.
    """
    name, options = f'local, K={num_modules}', f'--local {num_modules}'
    if heads is not None:
        kind = "the model's head" if heads in ('pooled', 'shared') else f'{heads} heads'
        name, options = f'{name}, {kind}', f'{options} --auxiliary {heads}'
    if recompute is not None:
        name, options = f'{name}, recomputed', f'{options} --checkpoint {recompute}'
    return Way(
        name,
        False,
        task.known_costs.get(heads or '', _UNKNOWN),
        partial(localize, num_modules=num_modules, auxiliary=heads, recompute=recompute),
        options,
    )


def _heads(cfg: Config) -> List[str]:
    """Kinds of heads that a config's modules can learn from, the default first."""
    found = []
    for heads in task_of(cfg).heads:
        try:
            with quiet():
                localize(cfg, auxiliary=heads)
        except LocalLearningError:
            continue  # A detector that is none of boxes, for instance.
        found.append(heads)
    return found
