"""What goes from one process to the next where the modules of a backbone are in several."""

from dataclasses import dataclass, field
from typing import Dict, List, Optional

from torch import Tensor

from .local_step import LocalStep
from .partition import IMAGES


@dataclass
class StageState:
    """What the modules that have run leave to those after them, without any graph.

    Attributes:
        x: Output of the last module that has run.
        outputs: Maps that the backbone returns, as far as they are there, by their index.
        kept: Maps that later segments read, by name, and the images.
        pooled: The bank's averages of the modules' outputs.
        chance: State of the step's generator.
    """

    x: Tensor
    outputs: Dict[int, Tensor] = field(default_factory=dict)
    kept: Dict[str, Tensor] = field(default_factory=dict)
    pooled: List[Tensor] = field(default_factory=list)
    chance: Optional[Tensor] = None

    @classmethod
    def after(
        cls, x: Tensor, outputs: Dict[int, Tensor], kept: Dict[str, Tensor], step: LocalStep
    ) -> 'StageState':
        """What is there when some modules have run.

        Args:
            x: Output of the last of them, detached.
            outputs: See the attributes.
            kept: See the attributes.
            step: The iteration; its bank is about to be emptied.
        """
        chance = None if step.generator is None else step.generator.get_state()
        return cls(x, outputs, kept, list(step.bank.pooled()), chance)

    def restore(self, step: LocalStep) -> None:
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
        if self.chance is not None and step.generator is not None:
            step.generator.set_state(self.chance)


class HandedOver(Exception):
    """Ends a model's forward pass where the modules of this process end.

    Args:
        state: For the process with the next module.
    """

    def __init__(self, state: StageState):
        super().__init__('the next module is in another process')
        self.state = state
