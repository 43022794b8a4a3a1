"""What goes from one process to the next where the modules of a backbone are in several."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Dict, List, Optional

from torch import Tensor

from .partition import IMAGES

if TYPE_CHECKING:
    from .local_step import LocalStep


@dataclass
class StageState:
    """What the modules that have run leave to those after them, without any graph.

    Attributes:
        x: Output of the last module that has run; at first, the images.
        outputs: Maps that the backbone returns, as far as they are there, by their index.
        kept: Maps that later segments read, by name, and the images.
        pooled: The bank's averages of the modules' outputs.
        log: The local losses.
        chance: State of the step's generator.
    """

    x: Tensor
    outputs: Dict[int, Tensor] = field(default_factory=dict)
    kept: Dict[str, Tensor] = field(default_factory=dict)
    pooled: List[Tensor] = field(default_factory=list)
    log: Dict[str, Tensor] = field(default_factory=dict)
    chance: Optional[Tensor] = None

    def hand_over(self, step: 'LocalStep') -> 'StageState':
        """This, with what the modules have left in the step, which is about to end.

        Args:
            step: The iteration in the process of the modules that have run.
        """
        self.pooled, self.log = list(step.bank.pooled()), dict(step.log)
        if step.generator is not None:
            self.chance = step.generator.get_state()
        return self

    def restore(self, step: 'LocalStep') -> 'StageState':
        """Let the modules that are to come find what they would have found in one process.

        Args:
            step: The iteration in the process of those modules.
        """
        for level, feature in self.outputs.items():
            step.bank.put(level, feature)
        for name, feature in self.kept.items():
            if name != IMAGES:
                step.bank.put(name, feature)
        step.bank.pooled().extend(self.pooled)
        step.log.update(self.log)
        if self.chance is not None and step.generator is not None:
            step.generator.set_state(self.chance)
        return self
