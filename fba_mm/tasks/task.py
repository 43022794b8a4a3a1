"""What the package asks of a task, and which task a model is for."""

import copy
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple, Type, TypeVar, Union

import torch
from mmengine.structures import BaseDataElement
from torch import nn

from ..arguments import is_integer
from ..config import class_of, parts_of, type_name
from ..errors import LocalLearningError
from ..method_owner import is_method_of

Size = Tuple[int, int]


class Task:
    """What one task has of its own. Itself, it is any task that no file describes.

    A new task is one file with a subclass under :func:`register_task`. What it leaves out is as
    here: modules learn from the model's own head, and data are not looked at.

    Attributes:
        name: In tables, as ``'detection'``.
        example: A model of it in words, for messages, as ``'a detector of mmdet'``.
        models: Names of the classes that its models descend from. By name, so that no package is
            imported to look.
        backbone_key: What a model calls the network that local learning cuts.
        heads: Kinds of auxiliary networks that are planned with, see :func:`localize`.
        known_costs: What trainings with a kind have come to, in words; see benchmarks/results/.
        dense_heads: Names of heads that can be recomputed in the backward pass.
        large_heads: Names of heads that, with their neck, take more than any module with a head of
            its own, as their maps start at stride 4.
        shared_head_advice: What to do about one head that all modules share, where they learn far
            less from it.

    Example:
        >>> @register_task
        ... class Pose(Task):
        ...     name, example, models = 'pose', 'a pose estimator of mmpose', ('BasePoseEstimator',)
        ...
        ...     def describes(self, cfg):
        ...         return 'PoseEstimator' in type_name(cfg.model.type)
    """

    name = 'other'
    example = ''
    models: Tuple[str, ...] = ()
    backbone_key = 'backbone'
    heads: Tuple[str, ...] = ('shared',)
    known_costs: Dict[str, str] = {}
    dense_heads: Tuple[str, ...] = ()
    large_heads: Tuple[str, ...] = ()
    shared_head_advice: Optional[str] = None

    def describes(self, cfg: Mapping) -> bool:
        """Whether a config's model is for this task, as far as the config tells.

        Args:
            cfg: A config with a model.
        """
        return False

    def default_auxiliary(self, model: dict) -> str:
        """The kind of auxiliary networks that modules learn from unless a user chooses.

        Args:
            model: The model's config.
        """
        return 'shared'

    def auxiliary(self, model: dict, kind: Union[str, dict]) -> dict:
        """The config of auxiliary networks.

        Args:
            model: The model's config.
            kind: ``'shared'``, ``'pooled'``, ``'own'``, ``'light'``, see :func:`localize`, or a
                config, which is kept.

        Raises:
            LocalLearningError: There is no such kind, or none for this model.
        """
        if isinstance(kind, dict):
            return kind
        if kind == 'shared':
            return dict(type='SLM')
        if kind == 'pooled':
            return dict(type='SLM', blocks_per_stage=0)
        if kind == 'own':
            return dict(type='SLM', head=self.own_head(model))
        if kind == 'light':
            head = self.light_head(model)
            if head is None:
                raise LocalLearningError(
                    f"auxiliary='light' is a detector or segmentor, and "
                    f'{type_name(model.get("type"))} is none that tells its num_classes: give '
                    "'shared', or a config with a head of its task"
                )
            return dict(type='SLM', head=head)
        raise LocalLearningError(
            f"auxiliary={kind!r}: give 'shared', 'pooled', 'own', 'light', the name of a method, "
            "as 'DGL', or a config with a type"
        )

    def own_head(self, model: dict) -> dict:
        """A copy of a model's neck and head, for each module.

        Args:
            model: The model's config.
        """
        others = (self.backbone_key, 'data_preprocessor', 'init_cfg', 'pretrained')
        head = {key: value for key, value in copy.deepcopy(model).items() if key not in others}
        # The batch is augmented once, by the model.
        if 'augments' in (head.get('train_cfg') or {}):
            del head['train_cfg']
        return head

    def light_head(self, model: dict) -> Optional[dict]:
        """A light head that learns what the model's own does, or None if there is none.

        Args:
            model: The model's config.
        """
        return None

    def computes_in_slices(self, part: dict, package: str) -> bool:
        """Whether :func:`fba_mm.models.in_slices` can take the place of a part of a model.

        Args:
            part: The part's config.
            package: Where its type is registered, as ``'mmdet'``.
        """
        return False

    def loss_is_image_mean(self, model: nn.Module) -> bool:
        """Whether a model's loss is a mean of terms that belong to one image each.

        Args:
            model: The model.
        """
        return False

    def synthetic_targets(
        self, model: nn.Module, size: Size, generator: torch.Generator, images: int
    ) -> List[BaseDataElement]:
        """Random targets in the form in which the model's dataloader would give them.

        Args:
            model: The model.
            size: (height, width) of the images.
            generator: Of random numbers.
            images: Their number.

        Returns:
            A data sample for each image.

        Raises:
            LocalLearningError: They can't be made for this model.
        """
        return [self.synthetic_target(model, size, generator) for _ in range(images)]

    def synthetic_target(
        self, model: nn.Module, size: Size, generator: torch.Generator
    ) -> BaseDataElement:
        """The target of one image. See :meth:`synthetic_targets`."""
        raise no_targets(model)

    def check_dataset(self, dataset: dict, kind: Optional[type], where: str, model: dict) -> None:
        """Refuse files that can't be learned from. Called in the scope of the config.

        Args:
            dataset: Config of the data set, whose folders are there.
            kind: Its class; None if nothing is registered under its type.
            where: Where it stands in the config.
            model: The model's config.

        Raises:
            LocalLearningError: Names the first faulty file, and how to fix it.
        """

    def check_classes(
        self, dataset: dict, kind: Optional[type], where: str, model: nn.Module
    ) -> None:
        """Refuse a head that is made for another number of classes than the data has.

        Args:
            dataset: Config of the data set.
            kind: Its class; None if nothing is registered under its type.
            where: Where it stands in the config.
            model: The model.

        Raises:
            LocalLearningError: Names both numbers and how to fix it.
        """


_TASKS: Dict[str, Task] = {}
Kind = TypeVar('Kind', bound=Type[Task])


def register_task(kind: Kind) -> Kind:
    """Let the package know a task. Of two of one name, the later one counts.

    Args:
        kind: A subclass of :class:`Task`.
    """
    _TASKS[kind.name] = kind()
    return kind


def tasks() -> List[Task]:
    """The tasks that there are, by name."""
    return [_TASKS[name] for name in sorted(_TASKS)]


def task_of(cfg: Mapping) -> Task:
    """The task of a config's model.

    Args:
        cfg: A config.

    Example:
        >>> task_of(load_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')).name
        'detection'
    """
    model = cfg.get('model')
    if not isinstance(model, dict):
        return Task()
    found = [task for task in tasks() if task.describes(cfg)]
    if len(found) > 1:
        # A depth estimator has a segmentor's decode head, for instance.
        found = [_nearest(found, class_of(model, cfg.get('default_scope')))]
    return found[0] if found else Task()


def task_of_model(model: nn.Module) -> Task:
    """The task of a model.

    Args:
        model: The model, without a wrapper.
    """
    return _nearest(tasks(), type(model))


def _nearest(found: List[Task], kind: Optional[type]) -> Task:
    """The task of the nearest class that a model's descends from."""
    bases = getattr(kind, '__mro__', ())
    found = [task for base in bases for task in found if base.__name__ in task.models]
    return found[0] if found else Task()


def backbone_keys() -> List[str]:
    """What models call the network that local learning cuts, the usual name first."""
    return list(dict.fromkeys([Task.backbone_key, *(task.backbone_key for task in tasks())]))


def backbone_key(model: Mapping) -> str:
    """Under which name a model's config has what local learning wraps.

    Args:
        model: Config of a model.

    Returns:
        ``'generator'`` for mmagic's models, which have no backbone, else ``'backbone'``.

    Example:
        >>> backbone_key(load_config('mmagic::edsr/edsr_x2c64b16_1xb16-300k_div2k.py').model)
        'generator'
    """
    keys = backbone_keys()
    return next((key for key in keys if model.get(key) is not None), keys[0])


def num_classes_of(part: Union[nn.Module, dict], skip: Optional[nn.Module] = None) -> Optional[int]:
    """The classes that a model or a part of one tells apart, or None if it has none.

    Args:
        part: A model of any task, or its config.
        skip: A part of a model to leave out.

    Example:
        >>> num_classes_of(load_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py').model)
        80
    """
    # A two-stage detector's RPN has one class of its own beside those of the data set, and a
    # semantic head, as HTC has it, those of maps.
    found = (own_classes(one) for name, one in _parts(part, skip) if 'semantic' not in name)
    return max((count for count in found if count is not None), default=None)


def _parts(
    part: Union[nn.Module, dict], skip: Optional[nn.Module]
) -> Iterator[Tuple[str, Union[nn.Module, dict]]]:
    if isinstance(part, dict):
        yield from parts_of(part)
        return
    skipped = set() if skip is None else set(skip.modules())
    yield from ((name, one) for name, one in part.named_modules() if one not in skipped)


def own_classes(part: Any) -> Optional[int]:
    """The ``num_classes`` of a module or config itself, whatever those inside it have.

    Args:
        part: A module, a config, or None.
    """
    found = (
        part.get('num_classes') if isinstance(part, dict) else getattr(part, 'num_classes', None)
    )
    return found if is_integer(found) else None


def is_mean_loss(loss: Any, package: str, *names: str) -> bool:
    """Whether a loss is one of a package's, and its mean over all elements.

    Args:
        loss: A module; anything else is none.
        package: The package, as ``'mmpretrain'``.
        *names: Classes whose loss has a term for each element.
    """
    return (
        is_method_of(loss, 'forward', (package,), names)
        and loss.reduction == 'mean'
        and not getattr(loss, 'sample_wise', False)
    )


def no_targets(model: nn.Module) -> LocalLearningError:
    """What is raised where there are no synthetic targets.

    Args:
        model: The model.
    """
    known = ', of '.join(task.example for task in tasks() if task.example)
    return LocalLearningError(
        f'no synthetic batch for a {type(model).__name__}: give the config of {known}'
    )
