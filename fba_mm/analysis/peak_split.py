"""What the memory of a training step is made of at the moment when it is fullest."""

from contextlib import ExitStack
from typing import Any, Callable, Dict, Iterable, NamedTuple, Optional, Set

from torch import Tensor, nn
from torch.optim import Optimizer

from .memory import StorageTracker, storages_of, tensors_in

# What a tensor can be. Whatever else is alive belongs to the activations.
ROLES = ('parameters', 'optimizer_state', 'gradients', 'activations', 'bank', 'auxiliary')


class _Alive(NamedTuple):
    """The storages at one moment, and which of them the bank held then."""

    references: list
    banked: Set[int]


class PeakSplit(StorageTracker):
    """A :class:`StorageTracker` that knows at the end what its peak was made of.

    - ``gradients``: what ends in a parameter's ``.grad``, from the op that computes it until it is
      freed.
    - ``auxiliary``: the same of auxiliary networks, apart from the model's own.
    - ``bank``: maps that the feature bank held at that moment. The network needs them anyway.
    - ``parameters``, ``optimizer_state``: what the step itself made of these. After one step that
      warms up this is nothing: they lie below the baseline, see :func:`resident_bytes`.
    - ``activations``: all the rest, which is what autograd keeps, and temporary tensors.

    Args:
        model: The model that is trained.
        optimizer: Its optimizer.
        auxiliary: The auxiliary networks in it, if any.
        banked: Answers with the maps that the bank holds now.

    Example:
        >>> net = nn.Linear(8, 8, bias=False)
        >>> x = torch.ones(4, 8)
        >>> with PeakSplit(net, torch.optim.SGD(net.parameters(), lr=0.1)) as tracker:
        ...     net(x).sum().backward()
        >>> tracker.split()['gradients'], sum(tracker.split().values()) == tracker.peak
        (256, True)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        auxiliary: Iterable[nn.Module] = (),
        banked: Optional[Callable[[], Iterable[Tensor]]] = None,
    ) -> None:
        super().__init__()
        self._model = model
        self._optimizer = optimizer
        self._auxiliary = {id(p) for module in auxiliary for p in module.parameters()}
        self._banked = banked or (lambda: ())
        self._hooks = ExitStack()

    def split(self) -> Dict[str, int]:
        """The bytes of each of :data:`ROLES` at the peak; together they are the peak."""
        self._settle()
        made = {}
        for parameter in self._model.parameters():
            role = 'auxiliary' if id(parameter) in self._auxiliary else None
            made.update(self._references(parameter, role or 'parameters'))
            made.update(
                self._references(
                    self._optimizer.state.get(parameter, {}), role or 'optimizer_state'
                )
            )
        for buffer in self._model.buffers():
            made.update(self._references(buffer, 'parameters'))
        sums = dict.fromkeys(ROLES, 0)
        if self._at_peak is not None:
            for ref in self._at_peak.references:
                role = made.get(id(ref)) or ref.role
                if role is None:
                    role = 'bank' if ref.key in self._at_peak.banked else 'activations'
                sums[role] += ref.nbytes
        return sums

    def __enter__(self) -> 'PeakSplit':
        for parameter in self._model.parameters():
            if parameter.requires_grad:
                role = 'auxiliary' if id(parameter) in self._auxiliary else 'gradients'
                handle = parameter.register_post_accumulate_grad_hook(
                    lambda p, role=role: self._found(p.grad, role)
                )
                self._hooks.callback(handle.remove)
        return super().__enter__()

    def __exit__(self, *exc_info: Any) -> None:
        super().__exit__(*exc_info)
        self._hooks.close()

    def _found(self, tensor: Tensor, role: str) -> None:
        # The reference remembers: when the split is asked for, the gradient has been freed.
        for storage in storages_of(tensor):
            ref = self._live.get(storage._cdata)
            while ref is not None:
                ref.role = role
                ref = ref.replaces

    def _references(self, tensors: Any, role: str) -> Dict[int, str]:
        """Which of the storages that the step made hold these tensors, by identity."""
        found = (
            self._live.get(storage._cdata)
            for tensor in tensors_in(tensors)
            for storage in storages_of(tensor)
        )
        return {id(ref): role for ref in found if ref is not None}

    def _composition(self) -> _Alive:
        banked = {storage._cdata for tensor in self._banked() for storage in storages_of(tensor)}
        return _Alive(list(self._live.values()), banked)


def resident_bytes(
    model: nn.Module, optimizer: Optimizer, auxiliary: Iterable[nn.Module] = ()
) -> Dict[str, int]:
    """What training keeps between its steps, and the peak of a step comes on top of.

    Args:
        model: The model, after a step.
        optimizer: Its optimizer.
        auxiliary: The auxiliary networks in the model.

    Returns:
        Bytes of ``parameters`` (with buffers), ``optimizer_state``, and ``auxiliary``, which is
        both of these for the auxiliary networks.

    Example:
        >>> net = nn.Linear(8, 8, bias=False)
        >>> resident_bytes(net, torch.optim.SGD(net.parameters(), lr=0.1))
        {'parameters': 256, 'optimizer_state': 0, 'auxiliary': 0}
    """
    counted: Set[int] = set()

    def count(tensors: Any) -> int:
        nbytes = 0
        for tensor in tensors:
            for storage in storages_of(tensor):
                if storage._cdata not in counted:
                    counted.add(storage._cdata)
                    nbytes += storage.nbytes()
        return nbytes

    auxiliary = list(auxiliary)
    own = [p for module in auxiliary for p in module.parameters()]
    sizes = dict.fromkeys(('parameters', 'optimizer_state', 'auxiliary'), 0)
    for module in auxiliary:
        sizes['auxiliary'] += count((*module.parameters(), *module.buffers()))
    sizes['auxiliary'] += count(tensors_in([optimizer.state.get(p, {}) for p in own]))
    sizes['parameters'] = count((*model.parameters(), *model.buffers()))
    sizes['optimizer_state'] = count(tensors_in(dict(optimizer.state)))
    return sizes
