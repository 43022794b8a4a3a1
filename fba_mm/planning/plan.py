"""Going through the ways to train, and choosing one."""

import math
from dataclasses import dataclass, field
from typing import Callable, List, Optional, Set, Union

from mmengine.config import Config
from rich import box
from rich.console import Console
from rich.table import Table

from ..analysis.memory_fit import (
    MemoryPrediction,
    count_blocks,
    in_mib,
    predict_memory,
    young_garbage,
)
from ..analysis.simulated_step import quiet
from ..analysis.step_configs import trains_locally
from ..analysis.synthetic_batch import Shape, batch_shape
from ..errors import LocalLearningError
from ..memory_budget import parse_memory
from ..tasks import backbone_key
from .frontier_plot import Point
from .ways import Series, Way, ways_to_train

# Letters that a cell of the table holds without making the table wide.
_WORDS = 30


@dataclass(frozen=True)
class Planned:
    """A way to train with what it takes.

    Attributes:
        way: The way.
        memory: What a step takes.
        time: Counted operations of a step, memory traffic included, over those of the config as
            shipped.
    """

    way: Way
    memory: MemoryPrediction
    time: float


@dataclass
class Plan:
    """What :func:`plan_training` found.

    Attributes:
        shape: The batch, (images, channels, height, width).
        tried: All ways that were simulated, in the order of the table: exact ones first, each kind
            by decreasing memory.
        budget: Bytes to fit into; None without a budget.
        skipped: Names of ways that can't be simulated, with the reason.
    """

    shape: Shape
    tried: List[Planned]
    budget: Optional[int] = None
    skipped: List[str] = field(default_factory=list)

    @property
    def chosen(self) -> Optional[Planned]:
        """The exact way of least time that fits, else the local one; None if none fits."""
        fitting = [p for p in self.tried if self.budget is None or p.memory.total <= self.budget]
        return min(fitting, key=lambda p: (not p.way.exact, p.time, p.memory.total), default=None)

    @property
    def least(self) -> Planned:
        """The way that takes the least memory."""
        return min(self.tried, key=lambda p: p.memory.total)

    def points(self) -> List[Point]:
        """The ways, for :func:`draw_frontier`."""
        return [Point(p.way.name, p.way.exact, p.time, p.memory.total) for p in self.tried]

    def table(self) -> Table:
        """The ways with memory, time and what they are known to cost."""
        title = f'Ways to train on batches of {"×".join(map(str, self.shape))}'
        if self.budget is not None:
            title += f', budget {in_mib(self.budget)}'
        table = Table(title=title, title_justify='left', box=box.SIMPLE_HEAD, padding=(0, 1))
        table.add_column('way to train', no_wrap=True)
        table.add_column('exact')
        table.add_column('MiB', justify='right')
        table.add_column('time /\nas shipped', justify='right')
        if self.budget is not None:
            table.add_column('fits')
        table.add_column('known cost in accuracy')
        # What takes a sentence is said once, below the table.
        costs = dict.fromkeys(one.way.accuracy for one in self.tried)
        notes = [cost for cost in costs if len(cost) > _WORDS]
        for one in self.tried:
            fits = (
                [] if self.budget is None else ['yes' if one.memory.total <= self.budget else 'no']
            )
            guessed = '*' if one.memory.guessed_loss else ''
            cost = one.way.accuracy
            table.add_row(
                one.way.name,
                'yes' if one.way.exact else 'no',
                in_mib(one.memory.total)[: -len(' MiB')] + guessed,
                f'{one.time:.2f}',
                *fits,
                f'[{notes.index(cost) + 1}]' if cost in notes else cost,
            )
        table.caption = '\n'.join(f'[{number}] {text}' for number, text in enumerate(notes, 1))
        table.caption_justify = 'left'
        return table

    def print(self, console: Console) -> None:
        """Print the table, and what was chosen or why nothing was.

        Args:
            console: Where to.
        """
        console.print(self.table())
        if any(one.memory.guessed_loss for one in self.tried):
            console.print('* without what the loss keeps, which cannot be simulated')
        if self.budget is not None:
            console.print(self.summary() if self.chosen else self.refusal(), soft_wrap=True)

    def summary(self) -> str:
        """Which way is taken and why, in a line."""
        chosen, stock = self.chosen, self.tried[0]
        assert chosen is not None and self.budget is not None
        if chosen is stock:
            return (
                f'{in_mib(stock.memory.total)} as shipped fit {in_mib(self.budget)}: this is '
                'plain back-propagation, nothing is needed'
            )
        kind = (
            'the fastest exact way that fits'
            if chosen.way.exact
            else 'no exact way fits, the fastest local one that does'
        )
        return (
            f'Training: {chosen.way.name}, {in_mib(chosen.memory.total)} of '
            f'{in_mib(self.budget)}, {chosen.time:.2f} times the operations of the config as '
            f'shipped ({kind})'
        )

    def refusal(self) -> str:
        """Why no way fits, and the least that would do, in a line."""
        least, parts = self.least, self.least.memory
        assert self.budget is not None
        resident = min(p.memory.resident for p in self.tried)
        shape = '×'.join(map(str, self.shape))
        if resident > self.budget:
            return (
                f'a budget of {in_mib(self.budget)} is less than parameters and optimizer state '
                f'alone, {in_mib(resident)}: give more, or take a smaller model or an optimizer '
                'with less state'
            )
        return (
            f'a budget of {in_mib(self.budget)} is less than any way to train takes on batches '
            f'of {shape}: the least is {in_mib(parts.total)}, by "{least.way.name}" '
            f'({in_mib(parts.resident)} of it parameters and optimizer state): give that much, '
            'or take smaller images, a smaller train_dataloader.batch_size or --amp'
        )


def plan_training(
    cfg: Config,
    memory_budget: Optional[Union[str, int, float]] = None,
    shape: Optional[Shape] = None,
    report: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Simulate the ways to train a config, and choose the one that a memory budget asks for.

    Each is simulated for memory and counted for operations (:func:`predict_memory`). Of ways that
    differ in a number, such as that of modules, a few are tried; with a budget, one after the other
    until one fits, and local ways only if no exact one does.

    Args:
        cfg: A stock training config. It is not changed.
        memory_budget: What the tensors of a step may take, parameters and optimizer state
            included: ``'8GB'``, ``'10GiB'``, or bytes.
        shape: The batch, (images, channels, height, width); unset, that of the config's train
            pipeline.
        report: Called with a line for each way that was simulated.

    Returns:
        The plan. Its ``chosen`` is None if nothing fits.

    Raises:
        LocalLearningError: The config trains locally already or can't be simulated, or the budget
            is none.

    Example:
        >>> cfg = load_config('fba_mm::demo/retinanet_r34_digits.py')
        >>> plan = plan_training(cfg, '50MB')
        >>> plan.chosen.way.name
        'with_cp=True'
        >>> cfg = plan.chosen.way.configure(cfg)
    """
    budget = None if memory_budget is None else parse_memory(memory_budget)
    if trains_locally(cfg):
        raise LocalLearningError(
            f'model.{backbone_key(cfg.model)} is a LocalBackbone, and a plan starts from the stock '
            "config: give that, or set num_modules='auto' and memory_budget in the LocalBackbone"
        )
    with young_garbage():  # Of all ways' simulations.
        return Search(cfg, batch_shape(cfg) if shape is None else shape, budget, report).plan()


def _is_slower(way: Way, other: Way) -> bool:
    """Whether an exact way computes all that another one does, and more."""
    if (way.kind, other.kind) == ('images', 'accumulation'):
        return other.recomputes_head <= way.recomputes_head
    return way.kind == other.kind and other.recomputes_head < way.recomputes_head


class Search:
    """Simulates ways to train a config.

    Args:
        cfg: The stock config.
        shape: The batch.
        budget: Bytes to fit into, if any.
        report: Called with a line for each way.
    """

    def __init__(
        self,
        cfg: Config,
        shape: Shape,
        budget: Optional[int] = None,
        report: Callable[[str], None] = lambda line: None,
    ):
        self._cfg, self._shape, self._budget, self._report = cfg, shape, budget, report
        self._tried: List[Planned] = []
        self._skipped: List[str] = []
        # Kinds of exact ways that are for other models.
        self._inapplicable: Set[str] = set()

    def plan(self) -> Plan:
        """Go through all ways. If the config fits as it is, no other one is tried."""
        first, *others = ways_to_train(self._cfg, self._shape[0])
        assert isinstance(first, Way), 'the config as it is'
        stock = self.attempt(first)
        if stock is None:
            raise LocalLearningError(self._skipped[0])
        if not any(isinstance(way, Series) and not way.exact for way in others):
            self._say_why_nothing_is_cut()
        # No way to train has fewer parameters.
        if not self._fits(stock) and not stock.memory.resident > (self._budget or math.inf):
            for way in others:
                if self._is_needless(way):
                    continue
                if isinstance(way, Way):
                    self.attempt(way)
                elif not way.exact and any(
                    one.way.exact and self._fits(one) for one in self._tried
                ):
                    break  # No local way would be taken, and they come last.
                elif self._budget is None:
                    self._show(way)
                elif not way.dominated:
                    self.least_that_fits(way)
        rest = sorted(self._tried[1:], key=lambda p: (not p.way.exact, -p.memory.total))
        return Plan(self._shape, [stock, *rest], self._budget, self._skipped)

    def _say_why_nothing_is_cut(self) -> None:
        try:
            count_blocks(self._cfg)
        except LocalLearningError as error:
            self._skipped.append(f'checkpointing in spans, local learning: {error}')
            self._report(f'checkpointing in spans, local learning: skipped ({error})')

    def _is_needless(self, way: Union[Way, Series]) -> bool:
        """Whether a way can't be simulated, as others of its kind, or would not be taken."""
        if way.exact and way.kind in self._inapplicable:
            return True
        return isinstance(way, Way) and any(
            self._fits(one) and _is_slower(way, one.way) for one in self._tried
        )

    def _show(self, series: Series) -> None:
        """Try some of a series that show its range."""
        last = series.numbers[-1]
        for number in series.numbers:
            shown = (2, 4) if series.dominated else (2, 4, 8, last)
            if number in shown and self.attempt(series.make(number)) is None and series.exact:
                return  # It is for another kind of model.

    def least_that_fits(self, series: Series) -> Optional[Planned]:
        """Find the smallest number of a series that fits, by bisection.

        Where memory rises with the number, since each module has an auxiliary network, smaller ones
        are looked at.

        Args:
            series: The ways.

        Returns:
            The way; None if none fits, or none that is faster than one of the kind found before.
        """
        ways = [series.make(number) for number in series.numbers]
        lowest, highest = 0, len(ways) - 1
        found = None
        while lowest <= highest:
            middle = (lowest + highest) // 2
            planned = self.attempt(ways[middle])
            if planned is None and series.exact:
                return None  # It is for another kind of model.
            if planned is None or self._fits(planned):
                found, rises = planned or found, True  # Those above take more time for nothing.
            elif planned.time >= self._fastest(series.exact):
                rises = True
            elif series.exact or middle == highest:
                rises = not series.exact
            else:
                higher = self.attempt(ways[middle + 1])
                rises = higher is None or higher.memory.total > planned.memory.total
            if rises:
                highest = middle - 1
            else:
                lowest = middle + 1
        return found

    def _fastest(self, exact: bool) -> float:
        """The least time of the ways of a kind that fit."""
        return min(
            (one.time for one in self._tried if one.way.exact == exact and self._fits(one)),
            default=math.inf,
        )

    def _fits(self, planned: Planned) -> bool:
        return self._budget is not None and planned.memory.total <= self._budget

    def attempt(self, way: Way) -> Optional[Planned]:
        """Simulate a way.

        Args:
            way: The way.

        Returns:
            What it takes; None if it can't be simulated.
        """
        known = next((one for one in self._tried if one.way.name == way.name), None)
        if known is not None:
            return known
        try:
            with quiet():
                cfg = way.configure(self._cfg)
            memory = predict_memory(cfg, self._shape)
        except LocalLearningError as error:
            # The others can do without it.
            self._skipped.append(f'{way.name}: {error}' if self._tried else str(error))
            self._report(f'{way.name}: skipped ({error})')
            if way.kind == 'accumulation':
                self._inapplicable.add(way.kind)
            return None
        stock = self._tried[0].memory if self._tried else memory
        planned = Planned(way, memory, memory.operations / stock.operations)
        self._tried.append(planned)
        self._report(f'{way.name}: {in_mib(memory.total)}')
        return planned
