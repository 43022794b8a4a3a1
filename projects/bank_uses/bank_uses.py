"""Five ways in which a classifier's modules use the feature bank: as context, target or memory."""

from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from fba_mm.arguments import check_count, check_number
from fba_mm.errors import LocalLearningError
from fba_mm.local.bank_use import BankUse
from fba_mm.local.local_step import LocalStep
from fba_mm.local.partition import CutPoint
from fba_mm.local.task_loss import StubbableBackbone
from fba_mm.tasks.classification import classes_of


@MODELS.register_module()
class GatedContext(BankUse):
    """Adds pooled features of the bank to the module's, through a gate that starts almost closed.

    Under ``scope='past'`` these are the features of earlier modules, under ``'all'`` the network's
    deepest ones too, from the pass ahead. A share of the images is answered without them.

    Args:
        cut_point: Where the auxiliary network sits.
        dropout: Share of the images from which the context is withheld.
        opening: The gate before training, from 0 (closed) to 1.

    Example:
        >>> auxiliary = dict(type='SLM', bank_use=dict(type='GatedContext', dropout=0.5))
    """

    reads_pooled = True
    scopes = ('all', 'past')

    def __init__(self, cut_point: CutPoint, dropout: float = 0.5, opening: float = 0.1):
        super().__init__(cut_point)
        check_number('bank_use.opening', opening, above=0, below=1)
        self.dropout = check_number('bank_use.dropout', dropout, least=0, most=1)
        channels = cut_point.levels[-1].channels
        # One projection for each source: which ones are there depends on the bank's scope.
        self.projections = nn.ModuleList(
            nn.Linear(width, channels) for width in cut_point.earlier_channels
        )
        self.deep_projection = nn.Linear(channels, channels)
        self.gate = nn.Linear(channels, channels)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, torch.tensor(opening).logit().item())

    def check_bank(self, scope: str) -> None:
        """See :class:`BankUse`. What a scope has no source for is not trained."""
        super().check_bank(scope)
        if scope != 'all':
            self.deep_projection.requires_grad_(False)
            if not self.projections:
                self.gate.requires_grad_(False)

    def enrich(self, features: Tuple[Tensor, ...], step: LocalStep) -> Tuple[Tensor, ...]:
        """See :class:`BankUse`."""
        own = features[-1]
        sources = [
            project(pooled.to(own.dtype))
            for project, pooled in zip(self.projections, step.bank.pooled())
        ]
        deep = step.bank.get(self.cut_point.levels[-1].level)
        if deep is not None:
            sources.append(self.deep_projection(_pool(deep).to(own.dtype)))
        if not sources:
            return features
        offered = torch.rand(len(own), 1, generator=step.generator) >= self.dropout
        gate = torch.sigmoid(self.gate(_pool(own))) * offered.to(own.device, non_blocking=True)
        context = gate * torch.stack(sources).mean(0)
        context = context.reshape(*context.shape, *[1] * (own.dim() - 2))
        return features[:-1] + (own + context,)


@MODELS.register_module()
class FeatureTarget(BankUse):
    """The module's pooled features shall point where the network's deepest ones do.

    Loss: one minus their cosine. Needs ``scope='all'``, whose pass ahead gives the target.

    Args:
        cut_point: Where the auxiliary network sits.
        weight: Factor of the loss.

    Example:
        >>> auxiliary = dict(type='SLM', bank_use=dict(type='FeatureTarget', weight=0.5))
    """

    scopes = ('all',)

    def __init__(self, cut_point: CutPoint, weight: float = 0.5):
        super().__init__(cut_point, weight)

    def loss(
        self,
        features: Tuple[Tensor, ...],
        head: nn.Module,
        source: StubbableBackbone,
        step: LocalStep,
    ) -> Optional[Tensor]:
        """See :class:`BankUse`."""
        target = step.bank.get(self.cut_point.levels[-1].level)
        cosine = F.cosine_similarity(_pool(features[-1]).float(), _pool(target).float())
        return self.weight * (1 - cosine).mean()


@MODELS.register_module()
class LogitTarget(BankUse):
    """The module's classes shall be those that the whole network sees, from the pass ahead.

    Loss: the divergence KL(network ‖ module) at a temperature (Hinton et al., Distilling the
    Knowledge in a Neural Network, 2015, section 2). Needs ``scope='all'``.

    Args:
        cut_point: Where the auxiliary network sits.
        temperature: Divides both logits.
        weight: Factor of the loss.

    Example:
        >>> auxiliary = dict(type='SLM', bank_use=dict(type='LogitTarget', weight=0.5))
    """

    scopes = ('all',)

    def __init__(self, cut_point: CutPoint, temperature: float = 1.0, weight: float = 0.5):
        super().__init__(cut_point, weight)
        self.temperature = check_number('bank_use.temperature', temperature, above=0)

    def loss(
        self,
        features: Tuple[Tensor, ...],
        head: nn.Module,
        source: StubbableBackbone,
        step: LocalStep,
    ) -> Optional[Tensor]:
        """See :class:`BankUse`."""
        level = self.cut_point.levels[-1].level
        # The bank may hold it in fewer bits.
        deep = step.bank.get(level).to(features[-1].dtype)
        target = step.network_logits((deep,))
        own = step.logits(head, source, features)
        return self.weight * _divergence(target, own, self.temperature)


@MODELS.register_module()
class ClassMemory(BankUse):
    """The module's pooled features shall be nearer to their class's deep features than to others'.

    The bank over iterations: of every class, a running mean of the network's deepest pooled
    features. It costs no pass ahead. Loss: cross-entropy over the cosines to all classes' means
    (Snell et al., Prototypical Networks, NeurIPS 2017, equation 2, with cosines).

    Args:
        cut_point: Where the auxiliary network sits.
        num_classes: Number of classes.
        momentum: What of the mean stays when a batch with the class comes.
        temperature: Divides the cosines.
        weight: Factor of the loss.

    Example:
        >>> auxiliary = dict(type='SLM', bank_use=dict(type='ClassMemory', num_classes=10))
    """

    def __init__(
        self,
        cut_point: CutPoint,
        num_classes: Optional[int] = None,
        momentum: float = 0.9,
        temperature: float = 0.1,
        weight: float = 0.5,
    ):
        super().__init__(cut_point, weight)
        self.num_classes = check_count(
            'bank_use.num_classes', num_classes, fix=', as in num_classes=10'
        )
        self.momentum = check_number('bank_use.momentum', momentum, least=0, below=1)
        self.temperature = check_number('bank_use.temperature', temperature, above=0)
        self.register_buffer('means', torch.zeros(num_classes, cut_point.levels[-1].channels))
        self.register_buffer('known', torch.zeros(num_classes, dtype=torch.bool))

    def loss(
        self,
        features: Tuple[Tensor, ...],
        head: nn.Module,
        source: StubbableBackbone,
        step: LocalStep,
    ) -> Optional[Tensor]:
        """See :class:`BankUse`."""
        labels = _hard(step.labels())
        own = F.normalize(_pool(features[-1]).float(), dim=1)
        cosines = own @ F.normalize(self.means, dim=1).t() / self.temperature
        # Not by leaving images out: how many there are, a GPU would have to be waited for.
        cosines = cosines.masked_fill(~self.known, torch.finfo(cosines.dtype).min)
        losses = F.cross_entropy(cosines, labels, reduction='none')
        # Of all images: those of unknown classes have no loss.
        return self.weight * torch.where(self.known[labels], losses, 0).mean()

    @torch.no_grad()
    def observe(self, features: Tuple[Tensor, ...], step: LocalStep) -> None:
        """See :class:`BankUse`."""
        labels = _hard(step.labels())
        classes = torch.arange(self.num_classes, device=labels.device)
        members = (labels[:, None] == classes).float()
        count = members.sum(0)
        here = count > 0
        means = members.t() @ _pool(features[-1]).float() / count.clamp(min=1)[:, None]
        stays = torch.where(self.known, self.momentum, 0.0)[:, None]
        self.means.copy_(
            torch.where(here[:, None], stays * self.means + (1 - stays) * means, self.means)
        )
        self.known |= here

    def check(self, model: nn.Module) -> None:
        """See :class:`BankUse`."""
        super().check(model)
        _compare_classes(self.num_classes, model)


@MODELS.register_module()
class SampleMemory(BankUse):
    """The module's classes of an image shall be those that the network saw in it an epoch ago.

    The bank over epochs: of every image of the training set, the network's last logits. It costs
    no pass ahead. Loss: as :class:`LogitTarget`'s, over the images that are known.

    Args:
        cut_point: Where the auxiliary network sits.
        num_classes: Number of classes.
        num_samples: Images in the training set. An image is known by the ``sample_idx`` of its
            data sample.
        temperature: Divides both logits.
        weight: Factor of the loss.

    Example:
        >>> auxiliary = dict(type='SLM', bank_use=dict(
        ...     type='SampleMemory', num_classes=10, num_samples=50000))
    """

    def __init__(
        self,
        cut_point: CutPoint,
        num_classes: Optional[int] = None,
        num_samples: Optional[int] = None,
        temperature: float = 1.0,
        weight: float = 0.5,
    ):
        super().__init__(cut_point, weight)
        self.num_classes = check_count(
            'bank_use.num_classes', num_classes, fix=', as in num_classes=10'
        )
        self.num_samples = check_count(
            'bank_use.num_samples', num_samples, fix=', as in num_samples=50000'
        )
        self.temperature = check_number('bank_use.temperature', temperature, above=0)
        self.register_buffer('logits', torch.zeros(num_samples, num_classes, dtype=torch.bfloat16))
        self.register_buffer('known', torch.zeros(num_samples, dtype=torch.bool))

    def loss(
        self,
        features: Tuple[Tensor, ...],
        head: nn.Module,
        source: StubbableBackbone,
        step: LocalStep,
    ) -> Optional[Tensor]:
        """See :class:`BankUse`."""
        indices = self._indices(step)
        own = step.logits(head, source, features)
        losses = _divergences(self.logits[indices].float(), own, self.temperature)
        # Of all images: those that aren't known have no loss.
        return self.weight * torch.where(self.known[indices], losses, 0).mean()

    @torch.no_grad()
    def observe(self, features: Tuple[Tensor, ...], step: LocalStep) -> None:
        """See :class:`BankUse`."""
        indices = self._indices(step)
        self.logits[indices] = step.network_logits(features).to(self.logits.dtype)
        self.known.index_fill_(0, indices, True)

    def check(self, model: nn.Module) -> None:
        """See :class:`BankUse`."""
        super().check(model)
        _compare_classes(self.num_classes, model)
        if getattr(getattr(model, 'data_preprocessor', None), 'batch_augments', None):
            raise LocalLearningError(
                'SampleMemory knows images as they are, and batch_augments mixes them: leave '
                "model.train_cfg.augments out, or take bank_use=dict(type='LogitTarget')"
            )

    def _indices(self, step: LocalStep) -> Tensor:
        indices, least, greatest = step.sample_indices()
        if not 0 <= least <= greatest < self.num_samples:
            raise LocalLearningError(
                f'SampleMemory knows {self.num_samples} images, the batch has those numbered '
                f'{least} to {greatest}: give num_samples the size of the training set, and '
                "PackInputs meta_keys with 'sample_idx'"
            )
        return indices


def _compare_classes(own: int, model: nn.Module) -> None:
    main = classes_of(model)
    if own != main:
        raise LocalLearningError(
            f'bank_use knows {own} classes, the model {main}: give both the same num_classes'
        )


def _hard(labels: Tensor) -> Tensor:
    """(N,) classes; of mixed images the strongest."""
    return labels.argmax(1) if labels.dim() == 2 else labels


def _pool(feature: Tensor) -> Tensor:
    return feature.flatten(2).mean(2) if feature.dim() > 2 else feature


def _divergence(target: Tensor, own: Tensor, temperature: float) -> Tensor:
    return _divergences(target, own, temperature).mean()


def _divergences(target: Tensor, own: Tensor, temperature: float) -> Tensor:
    """Of each image, (N,)."""
    target = F.log_softmax(target.float() / temperature, dim=1)
    own = F.log_softmax(own.float() / temperature, dim=1)
    # Gradients shrink with the temperature's square.
    return F.kl_div(own, target, reduction='none', log_target=True).sum(1) * temperature**2
