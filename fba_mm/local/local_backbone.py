"""``LocalBackbone``: where the network is cut, and what each module learns from."""

from collections import OrderedDict
from typing import (
    Any,
    Callable,
    Dict,
    FrozenSet,
    Iterable,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import torch
from mmengine.logging import print_log
from mmengine.model import ModuleList
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..arguments import check_count, check_number, is_integer
from ..compat.torch_versions import is_autocast_enabled
from ..errors import LocalLearningError
from ..memory_budget import check_budget
from .kept_state import unchanged_state
from .level_reads import levels_read
from .local_step import Idle, LocalStep
from .partition import (
    IMAGES,
    Recompute,
    check_segments,
    cut,
    cut_points,
    levels_of,
    recompute_spans,
    trace_footprints,
    unroll,
)
from .partition.reconstruction import in_slices
from .recompute import run_recomputing, run_segments
from .stage_state import StageState
from .task_loss import SEVERAL_PASSES, Features, StubbableBackbone

WITHOUT_HOOK = (
    "LocalBackbone does not train without FBAHook: add custom_hooks = [dict(type='FBAHook')] to "
    'the config'
)
_OTHER_IMAGES = (
    "the model's loss runs its backbone on other images for each module, as one that mixes or "
    'augments images itself does: augment in the pipeline or in the data_preprocessor, or train '
    'with num_modules=1 (back-propagation)'
)
# What neck and head see at once, at least: with less, passes aren't worth what they cost.
_HEAD_PIXELS = 2**18
# So many times as much is not split at all: on RetinaNet-R18, 4 images of 320×240, two passes take
# 5 to 9 % more time for 0 to 6 % less peak.
_HEAD_WHOLE = 2
# Of the whole network once it is trained exactly, as ``--checkpoint 3`` of tools/train.py.
_EXACT_SPANS = 3


@MODELS.register_module()
class LocalBackbone(StubbableBackbone):
    """Trains a backbone in K gradient-isolated modules, each with a loss of its own.

    In training, module i runs on a detached input, its auxiliary network computes a loss, and the
    gradients are computed at once, so that module i's activations are gone before module i + 1
    runs (FBA paper, equation 1). The last module has no auxiliary network: its output goes to the
    model's own neck and head. In evaluation this is exactly the wrapped backbone, whose attributes
    and layers are found here too: ``model.backbone.layer1``, ``model.backbone.frozen_stages``.

    A module that is frozen as a whole, by the config or later by a hook, needs no loss: it runs
    without a graph and without its auxiliary network. An auxiliary network is trained as long as
    its module is; a hook that freezes all parameters named ``backbone.*`` is not meant for it.

    Training needs :class:`FBAHook` in ``custom_hooks`` and ``optim_wrapper.type`` set to
    ``LocalOptimWrapper``.

    Args:
        backbone: Config of the backbone to wrap, or of mmagic's generator; or the built one.
        num_modules: K. A number (1 is back-propagation; cuts are placed so that the largest
            module keeps as little as possible for its backward pass), ``'stages'`` for one module
            per stage, ``'blocks'`` for the finest cut; or explicit cuts: the blocks after which to
            cut, ``['layer1.2', 'layer2.1', 'layer3.0']``, or the number of blocks of each module,
            ``[4, 4, 4, 4]``, the stem counted as one.
        auxiliary: Config of the auxiliary networks, without their ``cut_point``. Unless given,
            ``type`` is SLM, and SLMReconstruction for networks that make images.
        head_batch_size: Images that a neck and head see at once, the model's own and the
            auxiliary networks'. Less memory and the same gradients; it holds for anchor-based
            single-stage heads without batch normalization, others see the whole batch. Unset, as
            few as have 512×512 pixels together; all of a batch with no more than twice as many, and
            with ``num_modules=1``. The last layers of networks that make images see so many, too,
            unset a quarter of the batch, or all of it with ``num_modules=1``; they run once more
            for it, in the backward pass.
        reserve: Memory to keep free in the last module, for the model's own neck and head, when
            ``num_modules`` is a number: a share of what the backbone keeps for its backward pass.
            Unset, 0.2 where the auxiliary networks have lighter detection heads of their own (the
            difference on a RetinaNet-R50), and 0 where all modules run the model's, and for
            classifiers.
        recompute: Keep no activations of the backbone but the inputs of some spans of segments, and
            recompute the rest span by span in the backward pass (activation checkpointing): a
            number of spans for each module (chosen so that their inputs and the largest of them
            take the least memory), ``'stages'``, ``'blocks'`` for one per block, or a list of
            names of the segments that end a span, such as ``['layer2.3', 'layer3.5']``. Values,
            gradients and running statistics stay the same. With ``num_modules=1`` this is exact
            back-propagation, and needs neither :class:`FBAHook` nor ``LocalOptimWrapper``.
        recompute_batch_size: Images that are recomputed at once. Less memory and the same
            gradients, up to the order of sums. Spans with layers that tie images together (batch
            normalization that is trained) or draw for them (dropout) see the whole batch, and so do
            all unless this is set.
        memory_budget: What ``num_modules='auto'`` shall fit into, as ``'8GB'``. Both are replaced
            by a number before the model is built, by ``tools/train.py`` or
            :func:`fba_mm.analysis.resolve_num_modules`.
        pretrained: Given by mmseg's models, which hand ``model.pretrained`` on to their backbone.
            So does this one.
        init_cfg: Initialization config. The wrapped backbone keeps its own.

    Raises:
        LocalLearningError: The backbone can't be cut, or not in so many modules or spans, or
            ``num_modules='auto'`` has not been replaced.

    Example:
        >>> model = dict(backbone=dict(
        ...     _delete_=True, type='LocalBackbone', backbone=_base_.model.backbone,
        ...     num_modules=4, auxiliary=dict(type='SLM')))
    """

    def __init__(
        self,
        backbone: Union[dict, nn.Module],
        num_modules: Union[int, str, Sequence[Union[int, str]]] = 4,
        auxiliary: Optional[dict] = None,
        head_batch_size: Optional[int] = None,
        reserve: Optional[float] = None,
        recompute: Optional[Recompute] = None,
        recompute_batch_size: Optional[int] = None,
        memory_budget: Optional[Union[str, int, float]] = None,
        pretrained: Optional[str] = None,
        init_cfg: Optional[dict] = None,
    ):
        super().__init__(init_cfg)
        if pretrained is not None and isinstance(backbone, dict):
            backbone = dict(backbone, pretrained=pretrained)
        if check_budget(num_modules, memory_budget):
            raise LocalLearningError(
                "num_modules='auto' is to be replaced by a number before the model is built: train "
                "with fba_mm's tools/train.py, call cfg = fba_mm.analysis.resolve_num_modules(cfg) "
                'in your own script, or give a number'
            )
        auxiliary = auxiliary or {}
        self.backbone: Any = backbone if isinstance(backbone, nn.Module) else MODELS.build(backbone)
        self.auxiliary = ModuleList()
        sizes = dict(head_batch_size=head_batch_size, recompute_batch_size=recompute_batch_size)
        for name, size in sizes.items():
            if size is not None:
                check_count(
                    name,
                    size,
                    what='a number of images',
                    fix=', or leave it unset for the whole batch',
                )
        if recompute_batch_size is not None and recompute is None:
            raise LocalLearningError(
                f'recompute_batch_size={recompute_batch_size} goes with recompute, without which '
                "nothing is recomputed: give recompute='blocks', too, or leave it out"
            )
        self.head_batch_size = head_batch_size
        self.recompute_batch_size = recompute_batch_size
        if reserve is None:
            # A classifier's head keeps next to nothing.
            head = auxiliary.get('head')
            reserve = 0.2 if isinstance(head, dict) and 'head' not in head else 0.0
        check_number('reserve', reserve, least=0)
        # FBAHook sets this: the iteration, during the model's pass for a loss; None without a hook.
        self.step: Union[LocalStep, Idle, None] = None
        self._initialize_auxiliary_at: Optional[str] = None
        self.register_load_state_dict_post_hook(_expect_missing_auxiliary)

        self._returns_tuple = True
        self._level_names: Optional[Tuple[str, ...]] = None
        # The spans of each module; none where nothing is recomputed.
        self.spans: List[List[range]] = []
        self.module_segments: List[range]
        whole = is_integer(num_modules) and num_modules == 1
        # Back-propagation needs no partition, and so no known family of backbones.
        if whole and recompute is None:
            self.segments, self.module_segments, self.footprints = [], [range(0)], []
            return
        unrolled = unroll(self.backbone)
        if unrolled.reduced_head is not None and not (whole and head_batch_size is None):
            unrolled = in_slices(unrolled, head_batch_size)
        self._returns_tuple = unrolled.returns_tuple
        self._level_names = unrolled.level_names
        self.segments = unrolled.segments
        self.footprints = trace_footprints(
            self.backbone, self.segments, unrolled.input_shape, unrolled.as_map
        )
        self.module_segments = (
            [range(len(self.segments))]
            if whole
            else cut(self.footprints, self.segments, num_modules, reserve)
        )
        if recompute is not None:
            self.spans = recompute_spans(
                self.footprints, self.segments, self.module_segments, recompute
            )
        check_segments(self.backbone, unrolled)
        points = cut_points(self.backbone, unrolled, self.footprints, self.module_segments)
        self._levels = points[-1].levels
        for point in points[:-1]:
            self.auxiliary.append(
                MODELS.build(
                    dict(auxiliary), default_args=dict(type=unrolled.auxiliary, cut_point=point)
                )
            )
        self._auxiliary_names = [
            [name for name, p in network.named_parameters() if p.requires_grad]
            for network in self.auxiliary
        ]

    def __getattr__(self, name: str) -> Any:
        """Attributes and layers of the wrapped backbone, under the names that users know."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            wrapped = _wrapped(self)
            # Python's own protocols, such as copying, are about this object.
            if wrapped is None or name.startswith('__') or not hasattr(wrapped, name):
                raise
            return getattr(wrapped, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set what only the wrapped backbone has, such as ``frozen_stages``, there."""
        wrapped = _wrapped(self)
        is_own = (
            wrapped is None
            or hasattr(type(self), name)
            or any(
                name in names
                for names in (vars(self), self._modules, self._parameters, self._buffers)
            )
        )
        if is_own or not hasattr(wrapped, name):
            super().__setattr__(name, value)
        else:
            setattr(wrapped, name, value)

    @property
    def num_modules(self) -> int:
        """Number of modules, K."""
        return len(self.module_segments)

    def train_exactly(self) -> None:
        """From now on, train the whole backbone by the model's own loss: back-propagation.

        It is recomputed in three spans. Auxiliary networks stay as they are, frozen.

        Raises:
            LocalLearningError: There is one module: it is trained so already.

        Example:
            >>> local = LocalBackbone(dict(type='mmdet.ResNet', depth=18), num_modules=4)
            >>> local.train_exactly()
            >>> local.num_modules, len(local.spans[0])
            (1, 3)
        """
        if self.num_modules == 1:
            raise LocalLearningError(
                'num_modules=1 is trained by back-propagation from the start: give more modules'
            )
        for parameter in self.auxiliary.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        self.module_segments = [range(len(self.segments))]
        trained = sum(not footprint.frozen for footprint in self.footprints)
        self.spans = recompute_spans(
            self.footprints, self.segments, self.module_segments, min(_EXACT_SPANS, trained)
        )

    def local_parameters(self, index: int) -> List[nn.Parameter]:
        """Parameters that only module ``index``'s loss trains: its layers' and its auxiliary's.

        Some may be frozen.

        Args:
            index: 0 to K - 2. The last module is trained by the model's own loss.
        """
        parameters = [
            p
            for i in self.module_segments[index]
            for p in self.segments[i].parameters(self.backbone)
        ]
        return [*parameters, *self.auxiliary[index].parameters()]

    def _is_trained(self, index: int) -> bool:
        """Whether a module has parameters to train; its auxiliary network is trained with it."""
        is_trained = any(
            p.requires_grad
            for i in self.module_segments[index]
            for p in self.segments[i].parameters(self.backbone)
        )
        parameter, names = self.auxiliary[index].get_parameter, self._auxiliary_names[index]
        # Hooks freeze all of them or none: one tells.
        if (
            names
            and parameter(names[0]).requires_grad != is_trained
            and not (is_trained and any(parameter(name).requires_grad for name in names))
        ):
            for name in names:
                parameter(name).requires_grad_(is_trained)
        return is_trained

    def images_at_once(self, images: Tensor) -> Optional[int]:
        """How many images of a batch neck and head see at once, where that is exact; None for all.

        Args:
            images: The batch, (N, C, H, W), or a list of views.
        """
        if self.head_batch_size is not None or self.num_modules == 1:
            return self.head_batch_size
        if not isinstance(images, Tensor):
            return None  # Views of self-supervised learning: their loss sees all of them.
        if images[:, 0].numel() <= _HEAD_WHOLE * _HEAD_PIXELS:
            return None
        return max(_HEAD_PIXELS // images[0, 0].numel(), 1)

    def unread_levels(self, model: nn.Module) -> FrozenSet[int]:
        """Levels that neither the model nor any auxiliary network looks at.

        Args:
            model: The model around this backbone.
        """
        if self.num_modules == 1:
            return frozenset()
        read = levels_read(model, self, self._levels)
        for auxiliary in self.auxiliary:
            read |= auxiliary.levels_read(model, self)
        own = {stage.level for stage in self._levels if stage.level is not None}
        return frozenset(own - read)

    def head_layers(self) -> Tuple[str, ...]:
        """Dotted names of the wrapped network's layers that are the task's own head.

        Backbones have none. Those of a generator enlarge by one factor, and differ with it.
        """
        try:
            unrolled = unroll(self.backbone)
        except LocalLearningError:
            return ()  # Of no known family, which is good enough for back-propagation.
        return () if unrolled.reduced_head is None else unrolled.segments[-1].submodules

    def get_layer_depth(self, param_name: str, prefix: str = '') -> Tuple[int, int]:
        """Where a parameter stands, for mmpretrain's learning rate decay by layers.

        Those of auxiliary networks count as the model's head does.

        Args:
            param_name: The parameter's name in the model.
            prefix: Where this backbone stands in the model, ``'backbone.'`` for instance.

        Returns:
            The parameter's depth, and how many depths there are.

        Raises:
            LocalLearningError: The wrapped backbone doesn't tell.
        """
        if not hasattr(self.backbone, 'get_layer_depth'):
            raise LocalLearningError(
                f'backbone {type(self.backbone).__name__} does not tell the depth of its layers, '
                'which learning rate decay by layers needs: leave optim_wrapper.constructor and '
                'layer_decay_rate out'
            )
        return self.backbone.get_layer_depth(param_name, f'{prefix}backbone.')

    def describe(self) -> str:
        """One line per module: its segments, what trains it, and its share of the activations.

        The share is that of what the whole backbone would keep for its backward pass.
        """
        if self.num_modules == 1:
            how = (
                f'recomputed in {len(self.spans[0])} spans'
                if self.spans
                else 'which is plain '
                'back-propagation: no feature bank, no auxiliary network, no memory saved'
            )
            return f"  the whole backbone, trained by the model's own loss, {how}"
        lines = []
        saved = [
            sum(self.footprints[i].saved_bytes for i in module) for module in self.module_segments
        ]
        for k, module in enumerate(self.module_segments):
            names = [self.segments[i].name for i in module] or ['whole backbone']
            span = names[0] if len(names) == 1 else f'{names[0]} ... {names[-1]}'
            trainer = "the model's own loss"
            if k < len(self.auxiliary):
                trainer = self.auxiliary[k].describe()
            share = f', {saved[k] / max(sum(saved), 1):.0%} of the activations'
            if self.spans:
                trainer += f', recomputed in {len(self.spans[k])} spans'
            lines.append(f'  module {k + 1}: {span}{share}, trained by {trainer}')
        return '\n'.join(lines)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Union[Features, StageState]:
        """What the backbone returns; in training, all modules but the last have been trained on it.

        Args:
            x: Images after preprocessing, (N, C, H, W).
            *args: What else the wrapped backbone takes; not in local modules.
            **kwargs: The same.

        Raises:
            LocalLearningError: In training, if no :class:`FBAHook` is there to train it, or if the
                model runs it several times for one loss.
        """
        if self._answer is not None:
            features = self.answer(x)
            self._check_images(x)
            return self._as_wrapped(features)
        if not (self.training and torch.is_grad_enabled()):
            return self.backbone(x, *args, **kwargs)
        if self.step is None and self.num_modules > 1:
            raise LocalLearningError(WITHOUT_HOOK)
        if self.num_modules == 1 or not isinstance(self.step, LocalStep):
            # Back-propagation, or a pass that asks for outputs, not for losses.
            return self._as_wrapped(self._forward_whole(x, *args, **kwargs))
        return self._as_wrapped(self.train_modules(x, self.step))

    def train_modules(self, x: Tensor, step: LocalStep) -> Union[Features, StageState]:
        """Train all modules but the last on a batch; of those in other processes, none.

        Args:
            x: Images after preprocessing, (N, C, H, W).
            step: The iteration.

        Returns:
            What the backbone returns, attached to the last module's graph; if that module is in
            another process, what is to go there.

        Raises:
            LocalLearningError: They were trained in this iteration already.
        """
        if self.num_modules == 1:
            return self._forward_whole(x)
        if step.expected is not None:
            raise LocalLearningError(SEVERAL_PASSES)
        # Where other modules have run before, this is what they ran on.
        step.expected = x if step.received is None else step.received.kept[IMAGES]
        self._check_images(x)
        return self._run_modules(x, step)

    def _check_images(self, x: Tensor) -> None:
        """Refuse images for a loss that are others than those that the modules run on."""
        expected = self.step.expected if isinstance(self.step, LocalStep) else None
        if expected is None or x is expected or not isinstance(x, Tensor):
            return
        if x.shape != expected.shape or not torch.equal(x, expected):
            raise LocalLearningError(_OTHER_IMAGES)

    def _forward_whole(self, x: Tensor, *args: Any, **kwargs: Any) -> Features:
        if not self.spans or self.num_modules > 1:
            return self.backbone(x, *args, **kwargs)
        _, levels, _ = self._run_module(0, x, {IMAGES: x})
        return self._returned(levels)

    def _returned(self, levels: Dict[int, Tensor]) -> Features:
        """The levels in order; one that is no tuple's, an image or scores, as it is."""
        features = tuple(levels[level] for level in sorted(levels))
        return features if self._returns_tuple else features[0]

    def _as_wrapped(self, features: Any) -> Any:
        """Levels in the form in which the wrapped backbone returns them."""
        if not isinstance(features, tuple):
            return features
        if self._level_names is not None:
            return OrderedDict(zip(self._level_names, features))
        return features if self._returns_tuple else features[0]

    def local_logits(self, x: Tensor, step: LocalStep) -> List[Tensor]:
        """What the auxiliary network of each module but the last says of images, (N, classes) each.

        For classifiers; nothing is trained.

        Args:
            x: Images after preprocessing, (N, C, H, W).
            step: The batch; its bank is filled.
        """
        logits: List[Tensor] = []

        def ask(index: int, x: Tensor, levels: Dict[int, Tensor], step: LocalStep) -> None:
            logits.append(self.auxiliary[index].logits(x, levels, step))

        with torch.no_grad():
            self._run_modules(x, step, ask)
        return logits

    def _train(self, index: int, x: Tensor, levels: Dict[int, Tensor], step: LocalStep) -> None:
        step.train(index, self.auxiliary[index].loss(x, levels, step))
        self.auxiliary[index].after_backward(step)

    def _run_modules(
        self, x: Tensor, step: LocalStep, visit: Optional[Callable] = None
    ) -> Union[Features, StageState]:
        """Runs the modules here one after the other, and has each trained, or visited."""
        if step.bank.scope == 'all':
            self._look_ahead(x, step)
        last = self.num_modules - 1
        here = range(self.num_modules) if step.modules_here is None else step.modules_here
        state = (
            StageState(x, kept={IMAGES: x})
            if step.received is None
            else step.received.restore(step)
        )
        reads_pooled = any(auxiliary.reads_pooled for auxiliary in self.auxiliary)
        for k in range(here.start, min(here.stop, last)):
            # A frozen module has nothing to learn from a loss, and needs no graph.
            learns = visit is not None or self._is_trained(k)
            with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
                step.enter(k)
                state.x, levels, step.kept = self._run_module(k, state.x, state.kept)
            if learns:
                (visit or self._train)(k, state.x, levels, step)
            # What the next module and the bank see is the same storage, without the graph.
            state.x = state.x.detach()
            for level, feature in levels.items():
                feature = feature.detach()
                if level in step.unread:
                    feature = feature.new_zeros(()).expand_as(feature)
                state.outputs[level] = feature
                step.bank.put(level, feature)
            for name, feature in step.kept.items():
                state.kept[name] = feature.detach()
                step.bank.put(name, state.kept[name])
            if reads_pooled:
                step.bank.put_pooled(self.auxiliary[k].cut_point.as_map(state.x))
            del levels
            step.kept = {}
        if here.stop <= last:
            return state.hand_over(step)
        step.enter(last)
        _, levels, _ = self._run_module(last, state.x, state.kept)
        outputs = {**state.outputs, **levels}
        seen = tuple(outputs[level].detach() for level in sorted(outputs))
        for auxiliary in self.auxiliary:
            auxiliary.observe(seen, step)
        return self._returned(outputs)

    def _run_module(
        self, index: int, x: Tensor, kept: Dict[str, Tensor]
    ) -> Tuple[Tensor, Dict[int, Tensor], Dict[str, Tensor]]:
        """Returns the module's output, the levels among its maps, and what it keeps for others."""
        if not self.spans:
            module = self.module_segments[index]
            return run_segments(self.backbone, self.segments[module.start : module.stop], x, kept)
        levels: Dict[int, Tensor] = {}
        own: Dict[str, Tensor] = {}
        for span in self.spans[index]:
            # Within the module that makes it, a kept map is read with its graph.
            x, new_levels, new_own = run_recomputing(
                self.backbone,
                self.segments[span.start : span.stop],
                x,
                {**kept, **own},
                self.recompute_batch_size,
            )
            levels.update(new_levels)
            own.update(new_own)
        return x, levels, own

    def _look_ahead(self, x: Tensor, step: LocalStep) -> None:
        # Weights that autocast casts under no_grad would stay in its cache, without a graph, and
        # the modules would then train on the cached casts: without the cache, they don't.
        device_type = x.device.type
        with torch.no_grad(), unchanged_state(self.backbone), torch.autocast(
            device_type, enabled=is_autocast_enabled(device_type), cache_enabled=False
        ):
            for level, feature in enumerate(levels_of(self.backbone(x))):
                step.bank.put(level, feature, ahead=True)

    @staticmethod
    def wrapped_keys(
        state_dict: Mapping[str, Any], prefix: str, expected: Iterable[str]
    ) -> Dict[str, Any]:
        """Rename the entries of an unwrapped backbone to those of a wrapped one.

        Args:
            state_dict: Entries of a model, or of a part of it.
            prefix: Where this module stands in it, ``'backbone.'`` for instance.
            expected: Names of the entries of the model with the wrapped backbone.
        """
        inner = f'{prefix}backbone.'
        stock = {prefix + name[len(inner) :]: name for name in expected if name.startswith(inner)}
        wrapped = any(key in state_dict for key in stock.values())
        return (
            dict(state_dict)
            if wrapped
            else {stock.get(key, key): value for key, value in state_dict.items()}
        )

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        """Accept the keys of the unwrapped backbone, so that stock checkpoints load."""
        expected = [f'{prefix}backbone.{name}' for name in self.backbone.state_dict()]
        renamed = self.wrapped_keys(state_dict, prefix, expected)
        is_stock = renamed.keys() != state_dict.keys()
        state_dict.clear()
        state_dict.update(renamed)
        auxiliary = f'{prefix}auxiliary.'
        self._initialize_auxiliary_at = (
            auxiliary
            if is_stock and not any(key.startswith(auxiliary) for key in state_dict)
            else None
        )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _wrapped(local_backbone: LocalBackbone) -> Optional[nn.Module]:
    """The wrapped backbone; None as long as there is none."""
    return vars(local_backbone).get('_modules', {}).get('backbone')


def _expect_missing_auxiliary(module: LocalBackbone, incompatible_keys: Any) -> None:
    """After a stock checkpoint, auxiliary networks are new, which is no mismatch."""
    prefix = module._initialize_auxiliary_at
    if prefix is None:
        return
    missing = incompatible_keys.missing_keys
    expected = [key for key in missing if key.startswith(prefix)]
    missing[:] = [key for key in missing if not key.startswith(prefix)]
    if expected:
        print_log(
            'LocalBackbone: the checkpoint is one of the unwrapped model; '
            'the auxiliary networks start from their own initialization',
            'current',
        )
